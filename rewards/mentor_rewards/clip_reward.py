"""What the rewards on a CLIP model share: the weights they name, and the tower they hold while they are loaded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardSpec
from mentor_rewards.embedding import embed_once
from mentor_rewards.weights import WeightsSource

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

CLIP_B32 = "openai/clip-vit-base-patch32"
UPSTREAM_B32 = "timm/vit_base_patch32_clip_224.openai"  # the same weights as open_clip reads them
CLIP_L14 = "openai/clip-vit-large-patch14"
CLIP_H14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class Tower(Protocol):
    """What embeds: a ClipTower, or open_clip's own (clip_upstream.py). Unit vectors, float32 on the CPU.

    Attributes:
        width: channels of an embedding.
    """

    width: int

    @property
    def key(self) -> Hashable:
        """Tells this tower's embeddings from others'."""

    @property
    def checksums(self) -> Mapping[str, str]:
        """File name -> sha256 of the weights."""

    def image_embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Of pictures."""

    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Of texts."""

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Which texts lose tokens."""


class ClipReward(Reward):
    """A reward computed from the embeddings of one CLIP model. ``spec.licence`` speaks of the published weights."""

    published: ClassVar[str] = CLIP_B32
    spec: RewardSpec

    def __init__(
        self, checkpoint: WeightsSource = CLIP_B32, backend: Literal["transformers", "upstream"] = "transformers"
    ) -> None:
        """
        Args:
            checkpoint: folder or hub id of a transformers CLIPModel with tokenizer; default: the one of DreamBench++.
            backend: ``upstream`` is the package open_clip, extra ``open-clip``; ``checkpoint`` is then a folder or hub
                id of its own layout.
        """
        self.checkpoint, self.backend = checkpoint, backend
        self._tower: Tower | None = None
        if checkpoint != self.published:
            self.spec = replace(self.spec, licence="unknown")

    @property
    def tower(self) -> Tower:
        """The loaded tower."""
        if self._tower is None:
            raise RewardError("score before load")
        return self._tower

    def check_files(self) -> None:
        """The tower's; upstream's package looks for its own."""
        if self.backend == "transformers":
            from mentor_rewards.clip_towers import find_clip

            find_clip(self.checkpoint)

    def load(self, device: str, dtype: str) -> None:
        """Take the shared tower, or upstream's."""
        if self.backend == "upstream":
            from mentor_rewards.clip_upstream import OpenClipTower

            source = UPSTREAM_B32 if self.checkpoint == CLIP_B32 else self.checkpoint
            self._hold(OpenClipTower(source, device, dtype))
            return
        from mentor_rewards.clip_towers import ClipTower

        self._hold(ClipTower.load(self.checkpoint, device, dtype))

    def unload(self) -> None:
        """Let go of the tower; it is freed with its last user."""
        self._tower = None

    def _hold(self, tower: Tower) -> None:
        self._tower = tower
        self.spec = replace(self.spec, weights=dict(tower.checksums))


def prompt_cosines(batch: RewardBatch, tower: Tower) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """Cosine of each picture with its prompt, float32 [N], and the detail ``truncated``: which prompts were cut."""
    import numpy as np

    if not len(batch):
        return np.empty(0, np.float32), {}
    pictures = embed_once(batch.shared, tower.key, batch.images, lambda items: tower.image_embeddings(items).numpy())
    prompts = embed_once(batch.shared, tower.key, batch.prompts, lambda items: tower.text_embeddings(items).numpy())
    distinct = list(dict.fromkeys(batch.prompts))
    cut = dict(zip(distinct, tower.too_long(distinct), strict=True))
    return np.einsum("nc,nc->n", pictures, prompts), {"truncated": [cut[prompt] for prompt in batch.prompts]}
