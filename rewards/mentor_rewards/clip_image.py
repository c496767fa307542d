"""CLIP-I: cosine between the picture and its reference in CLIP's image space.

Copying the reference maximises it: pair it with a reward for the prompt.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardOutput, RewardSpec
from mentor_rewards.embedding import cosine_to_references

if TYPE_CHECKING:
    from mentor_rewards.clip_towers import ClipTower


class ClipImage(Reward):
    """Cosine of picture and reference under a CLIP model, mean over the references; in [-1, 1]."""

    spec = RewardSpec(name="clip_image", version="1", needs=frozenset({"reference"}), range=(-1.0, 1.0))

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
        """One cosine per picture; None without a reference."""
        if self._tower is None:
            raise RewardError("score before load")
        tower = self._tower
        return cosine_to_references(batch, tower.key, lambda images: tower.image_embeddings(images).numpy())
