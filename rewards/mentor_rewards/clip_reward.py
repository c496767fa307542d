"""What the rewards on a CLIP model share: the weights they name, and the tower they hold while they are loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardSpec
from mentor_rewards.embedding import embed_once
from mentor_rewards.weights import WeightsSource

if TYPE_CHECKING:
    import numpy as np

    from mentor_rewards.clip_towers import ClipTower

CLIP_B32 = "openai/clip-vit-base-patch32"
CLIP_L14 = "openai/clip-vit-large-patch14"
CLIP_H14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class ClipReward(Reward):
    """A reward computed from the embeddings of one CLIP model. ``spec.licence`` speaks of the published weights."""

    published: ClassVar[str] = CLIP_B32
    spec: RewardSpec

    def __init__(self, checkpoint: WeightsSource = CLIP_B32) -> None:
        """
        Args:
            checkpoint: folder or hub id of a transformers CLIPModel with tokenizer; default: the one of DreamBench++.
        """
        self.checkpoint = checkpoint
        self._tower: ClipTower | None = None
        if checkpoint != self.published:
            self.spec = replace(self.spec, licence="unknown")

    @property
    def tower(self) -> ClipTower:
        """The loaded tower."""
        if self._tower is None:
            raise RewardError("score before load")
        return self._tower

    def load(self, device: str, dtype: str) -> None:
        """Take the shared tower."""
        from mentor_rewards.clip_towers import ClipTower

        self._hold(ClipTower.load(self.checkpoint, device, dtype))

    def unload(self) -> None:
        """Let go of the tower; it is freed with its last user."""
        self._tower = None

    def _hold(self, tower: ClipTower) -> None:
        self._tower = tower
        self.spec = replace(self.spec, weights=tower.checksums)


def prompt_cosines(batch: RewardBatch, tower: ClipTower) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """Cosine of each picture with its prompt, float32 [N], and the detail ``truncated``: which prompts were cut."""
    import numpy as np

    if not len(batch):
        return np.empty(0, np.float32), {}
    pictures = embed_once(batch.shared, tower.key, batch.images, lambda items: tower.image_embeddings(items).numpy())
    prompts = embed_once(batch.shared, tower.key, batch.prompts, lambda items: tower.text_embeddings(items).numpy())
    distinct = list(dict.fromkeys(batch.prompts))
    cut = dict(zip(distinct, tower.too_long(distinct), strict=True))
    return np.einsum("nc,nc->n", pictures, prompts), {"truncated": [cut[prompt] for prompt in batch.prompts]}
