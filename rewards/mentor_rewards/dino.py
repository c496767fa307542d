"""DINO and DINOv2: cosine between the picture and its reference, without a text in the training of the features.

Closer to the same subject than CLIP-I, which is content with the same kind of thing. Copying the reference maximises
both: pair them with a reward for the prompt.

``dino`` prepares pictures as facebookresearch/dino does (and DreamBench++ through torch.hub): short side to 256
(bicubic), central 224, ImageNet's statistics. ``dinov2`` does the same with the crop of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from PIL import Image

from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardOutput, RewardSpec
from mentor_rewards.embedding import cosine_to_references
from mentor_rewards.weights import WeightsSource, checksum

if TYPE_CHECKING:
    from mentor_rewards.clip_preprocessing import Preprocessing


class Dino(Reward):
    """Cosine of picture and reference under DINO ViT-S/8, mean over the references; in [-1, 1]."""

    published: ClassVar[str] = "facebook/dino-vits8"
    model_type: ClassVar[str] = "vit"
    odd_margin: ClassVar[Literal["floor", "round"]] = "round"
    spec = RewardSpec(
        name="dino",
        version="1",
        needs=frozenset({"reference"}),
        range=(-1.0, 1.0),
        probes=frozenset({"reference"}),
        licence="Apache-2.0",
    )

    def __init__(self, checkpoint: WeightsSource | None = None, resize: int = 256, crop: int = 224) -> None:
        """
        Args:
            checkpoint: folder or hub id of the transformers model (also facebook/dino-vits16), or, for DINO, a file of
                facebookresearch/dino; null: the published ViT-S.
            resize: pixels of the short side.
            crop: pixels of the square that the network looks at.
        """
        if not 0 < crop <= resize:
            raise RewardError(f"crop: expected 1 to {resize} (resize), found {crop}")
        self.checkpoint = self.published if checkpoint is None else checkpoint
        if self.checkpoint != self.published:
            self.spec = replace(self.spec, licence="unknown")
        self.resize, self.crop = resize, crop
        self._model: Any = None
        self._files: list[Path] = []

    def check_files(self) -> None:
        """The network's."""
        from mentor_rewards.dino_checkpoints import find_dino

        find_dino(self.checkpoint, self.model_type)

    def load(self, device: str, dtype: str) -> None:
        """Read the network.

        Raises:
            RewardError: no such weights, or weights of another network.
        """
        from mentor_rewards.dino_checkpoints import load_dino

        model, self._files = load_dino(self.checkpoint, self.model_type, dtype)
        self._model = model.to(device)
        self.spec = replace(self.spec, weights={path.name: checksum(path) for path in self._files})

    def unload(self) -> None:
        """Drop the network."""
        self._model = None

    @property
    def preprocessing(self) -> Preprocessing:
        """Of pictures and references."""
        from mentor_rewards.clip_preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

        return Preprocessing(self.resize, self.crop, mean=IMAGENET_MEAN, std=IMAGENET_STD, odd_margin=self.odd_margin)

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One cosine per picture; None without a reference."""
        model = self._model
        if model is None:
            raise RewardError("score before load")
        paths = tuple(str(path.resolve()) for path in self._files)
        return cosine_to_references(
            batch, ("dino", paths, str(model.device), str(model.dtype), self.preprocessing), self._embed
        )

    def _embed(self, images: Sequence[Image.Image]) -> Any:
        """Unit CLS features [M, C], float32."""
        import torch

        with torch.inference_mode():
            pixels = self.preprocessing(images).to(self._model.device, self._model.dtype)
            features = self._model(pixel_values=pixels).last_hidden_state[:, 0]
            return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


class DinoV2(Dino):
    """Cosine of picture and reference under DINOv2 ViT-S/14, mean over the references; in [-1, 1]."""

    published = "facebook/dinov2-small"
    model_type = "dinov2"
    odd_margin = "floor"
    spec = replace(Dino.spec, name="dinov2", version="2")
