"""HPSv2 and HPSv2.1: what people prefer, as a cosine under a tuned CLIP ViT-H/14 (Wu et al., arXiv 2306.09341).

Scores are bare cosines: no logit scale, and not the README's numbers, which are times 100. The two versions have
scales of their own and cannot be compared, nor can scores of different prompts. Departures from the package hpsv2
1.2.0: cosines in float32 (upstream's AMP quantises them to 2.4e-4), the picture is padded also where its long side is
224 already, and the text is tokenised by transformers' CLIP tokenizer, which does not mend broken Unicode first.

Optimising it leads to glossy, oversaturated pictures in one style; keep a monitor beside it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from mentor_rewards.clip_reward import CLIP_H14, ClipReward, prompt_cosines
from mentor_rewards.contract import RewardBatch, RewardError, RewardOutput, RewardSpec
from mentor_rewards.pixels import rgb
from mentor_rewards.weights import WeightsSource, checksum, find_weights


class HPSv2(ClipReward):
    """HPSv2: cosine of picture and prompt under the tuned ViT-H/14; pictures of common models lie at 0.24 to 0.28.

    Details: ``truncated``, whether the prompt is longer than 77 tokens.
    """

    published = "xswu/HPSv2"
    file: ClassVar[str] = "HPS_v2_compressed.pt"
    upstream_version: ClassVar[str] = "v2.0"
    spec = RewardSpec(
        name="hpsv2",
        version="2.0",
        needs=frozenset({"prompt"}),
        range=(-1.0, 1.0),
        probes=frozenset({"prompt"}),
        licence="Apache-2.0",
    )

    def __init__(
        self,
        checkpoint: WeightsSource = published,
        tokenizer: WeightsSource = CLIP_H14,
        sha256: str | None = None,
        side: int = 224,
        antialias: bool = True,
        backend: Literal["transformers", "upstream"] = "transformers",
    ) -> None:
        """
        Args:
            checkpoint: the published file, a folder or a hub id that has it.
            tokenizer: folder or hub id of CLIP's tokenizer; ``upstream`` brings its own.
            sha256: what the checkpoint's checksum must be.
            side: pixels that the tower looks at.
            antialias: as torchvision >= 0.17 resizes tensors; False as older ones did (other scores).
            backend: ``upstream`` is the package hpsv2, extra ``hpsv2``. It needs a torchvision that fits torch,
                chooses its device itself, fetches LAION's ViT-H/14 (4 GB) from the hub, only to overwrite it, rereads
                the checkpoint on every call and counts no truncated prompts.
        """
        super().__init__(checkpoint)
        self.tokenizer, self.sha256, self.side, self.antialias = tokenizer, sha256, side, antialias
        self.backend = backend
        self._upstream: Any = None
        self._path = Path()

    def check_files(self) -> None:
        """The checkpoint, and CLIP's tokenizer."""
        path = find_weights(self.checkpoint, self.file, self.sha256)
        if self.backend == "transformers":
            from mentor_rewards.clip_preprocessing import Letterbox
            from mentor_rewards.clip_towers import find_clip

            find_clip(path, self.tokenizer, Letterbox(self.side, self.antialias))

    def load(self, device: str, dtype: str) -> None:
        """Take the shared tower, or import upstream's package.

        Raises:
            RewardError: no such weights, or not these; upstream's package cannot be imported or sits elsewhere.
        """
        self._path = find_weights(self.checkpoint, self.file, self.sha256)
        if self.backend == "upstream":
            self._upstream = _upstream(device)
            self.spec = replace(self.spec, weights={self._path.name: checksum(self._path)})
            return
        from mentor_rewards.clip_preprocessing import Letterbox
        from mentor_rewards.clip_towers import ClipTower

        letterbox = Letterbox(self.side, self.antialias)
        self._hold(
            ClipTower.load(
                self._path, device, dtype, tokenizer=self.tokenizer, preprocessing=letterbox, activation="gelu"
            )
        )

    def unload(self) -> None:
        """Let go of the tower; upstream's package keeps its model until the process ends."""
        super().unload()
        self._upstream = None

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One cosine per picture."""
        if self.backend == "upstream":
            return RewardOutput(self._upstream_scores(batch))
        cosines, details = prompt_cosines(batch, self.tower)
        return RewardOutput([float(cosine) for cosine in cosines], details=details)

    def _upstream_scores(self, batch: RewardBatch) -> list[float | None]:
        """One call per prompt, because upstream reads the checkpoint in each."""
        if self._upstream is None:
            raise RewardError("score before load")
        scores: list[float | None] = [None] * len(batch)
        for prompt in dict.fromkeys(batch.prompts):
            rows = [row for row, other in enumerate(batch.prompts) if other == prompt]
            found = self._upstream.score(
                [rgb(batch.images[row]) for row in rows],
                prompt,
                cp=str(self._path),
                hps_version=self.upstream_version,
            )
            for row, score in zip(rows, found, strict=True):
                scores[row] = float(score)
        return scores


class HPSv21(HPSv2):
    """HPSv2.1: as HPSv2, trained on more preferences; pictures of common models lie at 0.15 to 0.31.

    Details: ``truncated``, whether the prompt is longer than 77 tokens.
    """

    file = "HPS_v2.1_compressed.pt"
    upstream_version = "v2.1"
    spec = replace(HPSv2.spec, name="hpsv2.1", version="2.1")


def _upstream(device: str) -> Any:
    """The module hpsv2.img_score."""
    from mentor_rewards.pretrained import upstream_module

    img_score = upstream_module("hpsv2.img_score", "hpsv2")
    if device.partition(":")[0] != img_score.device:
        raise RewardError(f"backend upstream: hpsv2 chose the device '{img_score.device}', the entry says '{device}'")
    return img_score
