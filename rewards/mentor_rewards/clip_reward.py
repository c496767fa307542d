"""What the rewards on a CLIP model share: the folder they name, and the tower they hold while they are loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mentor_rewards.contract import Reward, RewardError, RewardSpec
from mentor_rewards.weights import WeightsSource

if TYPE_CHECKING:
    from mentor_rewards.clip_towers import ClipTower


class ClipReward(Reward):
    """A reward computed from the embeddings of one CLIP model."""

    spec: RewardSpec

    def __init__(self, checkpoint: WeightsSource) -> None:
        """
        Args:
            checkpoint: folder of a transformers CLIPModel; see clip_towers.py.
        """
        self.checkpoint = checkpoint
        self._tower: ClipTower | None = None

    @property
    def tower(self) -> ClipTower:
        """The loaded tower."""
        if self._tower is None:
            raise RewardError("score before load")
        return self._tower

    def load(self, device: str, dtype: str) -> None:
        """Take the shared tower."""
        from mentor_rewards.clip_towers import ClipTower

        self._tower = ClipTower.load(self.checkpoint, device, dtype)
        self.spec = replace(self.spec, weights=self._tower.checksums)

    def unload(self) -> None:
        """Let go of the tower; it is freed with its last user."""
        self._tower = None
