"""CLIP-I: cosine between the picture and its reference in CLIP's image space.

Copying the reference maximises it: pair it with a reward for the prompt.
"""

from __future__ import annotations

from mentor_rewards.clip_reward import ClipReward
from mentor_rewards.contract import RewardBatch, RewardOutput, RewardSpec
from mentor_rewards.embedding import cosine_to_references


class ClipImage(ClipReward):
    """Cosine of picture and reference under a CLIP model, mean over the references; in [-1, 1].

    About 0.5 to 0.95 with OpenAI's ViT-B/32.
    """

    spec = RewardSpec(
        name="clip_image",
        version="1",
        needs=frozenset({"reference"}),
        range=(-1.0, 1.0),
        probes=frozenset({"reference"}),
        licence="MIT",
    )

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One cosine per picture; None without a reference."""
        tower = self.tower
        return cosine_to_references(batch, tower.key, lambda images: tower.image_embeddings(images).numpy())
