"""CLIP-T: cosine between the picture and its prompt in CLIP's joint space.

Letters that spell the prompt maximise it too; keep a monitor beside it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardOutput, RewardSpec
from mentor_rewards.embedding import embed_once

if TYPE_CHECKING:
    from mentor_rewards.clip_towers import ClipTower


class ClipText(Reward):
    """Cosine of picture and prompt under a CLIP model; in [-1, 1].

    Details: ``truncated``, whether the prompt is longer than the model reads.
    """

    spec = RewardSpec(name="clip_text", version="1", needs=frozenset({"prompt"}), range=(-1.0, 1.0))

    def __init__(self, checkpoint: Path) -> None:
        """
        Args:
            checkpoint: folder of a transformers CLIPModel; see clip_towers.py.
        """
        self.checkpoint = checkpoint
        self._tower: ClipTower | None = None

    def load(self, device: str, dtype: str) -> None:
        """Take the shared tower."""
        from mentor_rewards.clip_towers import ClipTower

        self._tower = ClipTower.load(self.checkpoint, device, dtype)
        self.spec = replace(self.spec, weights=self._tower.checksums)

    def unload(self) -> None:
        """Let go of the tower; it is freed with its last user."""
        self._tower = None

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One cosine per picture."""
        if self._tower is None:
            raise RewardError("score before load")
        if not len(batch):
            return RewardOutput([])
        tower = self._tower
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
