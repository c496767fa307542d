"""CLIP-T: cosine between the picture and its prompt in CLIP's joint space.

Letters that spell the prompt maximise it too; keep a monitor beside it.
"""

from __future__ import annotations

from mentor_rewards.clip_reward import ClipReward, prompt_cosines
from mentor_rewards.contract import RewardBatch, RewardOutput, RewardSpec


class ClipText(ClipReward):
    """Cosine of picture and prompt under a CLIP model; in [-1, 1], about 0.2 to 0.35 with OpenAI's ViT-B/32.

    Details: ``truncated``, whether the prompt is longer than the model reads.
    """

    spec = RewardSpec(
        name="clip_text",
        version="1",
        needs=frozenset({"prompt"}),
        range=(-1.0, 1.0),
        probes=frozenset({"prompt"}),
        licence="MIT",
    )

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One cosine per picture."""
        cosines, details = prompt_cosines(batch, self.tower)
        return RewardOutput([float(cosine) for cosine in cosines], details=details)
