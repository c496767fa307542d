"""CLIP-T: cosine between the picture and its prompt in CLIP's joint space.

Letters that spell the prompt maximise it too; keep a monitor beside it.
"""

from __future__ import annotations

import numpy as np

from mentor_rewards.clip_reward import ClipReward
from mentor_rewards.contract import RewardBatch, RewardOutput, RewardSpec
from mentor_rewards.embedding import embed_once


class ClipText(ClipReward):
    """Cosine of picture and prompt under a CLIP model; in [-1, 1].

    Details: ``truncated``, whether the prompt is longer than the model reads.
    """

    spec = RewardSpec(name="clip_text", version="1", needs=frozenset({"prompt"}), range=(-1.0, 1.0))

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One cosine per picture."""
        tower = self.tower
        if not len(batch):
            return RewardOutput([])
        pictures = embed_once(
            batch.shared, tower.key, batch.images, lambda items: tower.image_embeddings(items).numpy()
        )
        prompts = embed_once(batch.shared, tower.key, batch.prompts, lambda items: tower.text_embeddings(items).numpy())
        cosines = np.einsum("nc,nc->n", pictures, prompts)
        distinct = list(dict.fromkeys(batch.prompts))
        cut = dict(zip(distinct, tower.too_long(distinct), strict=True))
        return RewardOutput(
            [float(cosine) for cosine in cosines], details={"truncated": [cut[p] for p in batch.prompts]}
        )
