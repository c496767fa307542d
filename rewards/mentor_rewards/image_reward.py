"""ImageReward: how much people like a picture for its prompt (Xu et al., arXiv 2304.05977).

Departures from the package image-reward 1.5: none in the numbers for RGB pictures. Transparent parts become white
before the resize (upstream drops alpha after it), and prompts beyond 35 tokens, which are cut as upstream cuts them,
are counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardOutput, RewardSpec
from mentor_rewards.weights import WeightsSource, checksum, find_weights

if TYPE_CHECKING:
    from mentor_rewards.blip_scorer import Scorer

_FILE = "ImageReward.pt"


class ImageReward(Reward):
    """ImageReward, a preference model on BLIP: mean 0 and deviation 1 over its training set, about -2.3 to 2.

    It reads 35 tokens of the prompt and nothing after them. Details: ``truncated``, whether the prompt is longer.
    """

    spec = RewardSpec(
        name="image_reward",
        version="1",
        needs=frozenset({"prompt"}),
        probes=frozenset({"prompt"}),
        licence="Apache-2.0",
    )

    def __init__(
        self,
        checkpoint: WeightsSource = f"THUDM/ImageReward:{_FILE}",
        tokenizer: WeightsSource = "google-bert/bert-base-uncased",
        backend: Literal["transformers", "upstream"] = "transformers",
        sha256: str | None = None,
    ) -> None:
        """
        Args:
            checkpoint: ImageReward.pt, its folder or hub id.
            tokenizer: folder or hub id of BERT's uncased tokenizer; ``upstream`` brings its own.
            backend: ``upstream`` is the package image-reward, extra ``image-reward``.
            sha256: what the checkpoint's checksum must be.
        """
        self.checkpoint, self.tokenizer, self.backend, self.sha256 = checkpoint, tokenizer, backend, sha256
        self._scorer: Scorer | None = None

    def check_files(self) -> None:
        """The checkpoint, and BERT's tokenizer."""
        find_weights(self.checkpoint, _FILE, self.sha256)
        if self.backend == "transformers":
            from mentor_rewards.blip_scorer import find_tokenizer

            find_tokenizer(self.tokenizer)

    def load(self, device: str, dtype: str) -> None:
        """Read the checkpoint; the head stays in float32 whatever the dtype."""
        from mentor_rewards.blip_scorer import BlipScorer, UpstreamScorer

        path = find_weights(self.checkpoint, _FILE, self.sha256)
        if self.backend == "upstream":
            self._scorer = UpstreamScorer(path, device, dtype)
        else:
            self._scorer = BlipScorer(path, self.tokenizer, device, dtype)
        self.spec = replace(self.spec, weights={path.name: checksum(path)})

    def unload(self) -> None:
        """Drop the network."""
        self._scorer = None

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One score per picture."""
        if self._scorer is None:
            raise RewardError("score before load")
        if not len(batch):
            return RewardOutput([])
        scores = self._scorer.scores(batch.images, batch.prompts)
        return RewardOutput([*scores], details={"truncated": self._scorer.too_long(batch.prompts)})
