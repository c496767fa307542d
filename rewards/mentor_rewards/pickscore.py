"""PickScore: which of two pictures people pick for a prompt, in logits (Kirstain et al., arXiv 2305.01569).

exp(logit_scale) times the cosine under a tuned CLIP ViT-H/14: native units of about 18 to 24. Some trainers divide by
26; that is the entry's ``scale`` here. Source: README of yuvalkirstain/PickScore.

Like HPSv2 it drifts to glossy pictures in one style.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mentor_rewards.clip_reward import CLIP_H14, ClipReward, prompt_cosines
from mentor_rewards.contract import RewardBatch, RewardOutput, RewardSpec
from mentor_rewards.weights import WeightsSource

if TYPE_CHECKING:
    from mentor_rewards.clip_preprocessing import Preprocessing


class PickScore(ClipReward):
    """PickScore: exp(logit_scale) times the cosine of picture and prompt; about 18 to 24.

    Details: ``truncated``, whether the prompt is longer than 77 tokens.
    """

    published = "yuvalkirstain/PickScore_v1"
    spec = RewardSpec(
        name="pickscore",
        version="1",
        needs=frozenset({"prompt"}),
        range=(-100.0, 100.0),
        probes=frozenset({"prompt"}),
        licence="MIT (of the code)",
    )

    def __init__(self, checkpoint: WeightsSource = published, processor: WeightsSource | None = CLIP_H14) -> None:
        """
        Args:
            checkpoint: folder or hub id of the tuned CLIPModel.
            processor: folder or hub id with tokenizer and preprocessing; null: the checkpoint's own.
        """
        super().__init__(checkpoint)
        self.processor = processor
        self._scale = 0.0

    def check_files(self) -> None:
        """The tower's, and the processor's."""
        from mentor_rewards.clip_towers import find_clip

        find_clip(self.checkpoint, self.processor, self._preprocessing())

    def load(self, device: str, dtype: str) -> None:
        """Take the shared tower; the range becomes that of the weights' own logit scale."""
        from mentor_rewards.clip_towers import ClipTower
        from mentor_rewards.pretrained import read_tensor

        pixels = self._preprocessing()
        tower = ClipTower.load(self.checkpoint, device, dtype, tokenizer=self.processor, preprocessing=pixels)
        self._hold(tower)
        # From the file: rounded to bfloat16 with the tower it would be 1 % off.
        self._scale = float(read_tensor(tower.files, "logit_scale").float().exp())
        self.spec = replace(self.spec, range=(-self._scale, self._scale))

    def _preprocessing(self) -> Preprocessing | None:
        """The processor's; None: the checkpoint's own."""
        from mentor_rewards.clip_preprocessing import Preprocessing
        from mentor_rewards.weights import MODEL_FILES, TOKENIZER_FILES, find_folder

        if self.processor is None:
            return None
        files = [name for name in (*TOKENIZER_FILES, *MODEL_FILES) if "safetensors" not in name]
        return Preprocessing.load(find_folder(self.processor, files))

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One scaled cosine per picture."""
        cosines, details = prompt_cosines(batch, self.tower)
        return RewardOutput([self._scale * float(cosine) for cosine in cosines], details=details)
