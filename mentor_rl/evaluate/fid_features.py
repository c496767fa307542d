"""Whose features FID and KID compare.

    inception   2015 Inception, 2,048 pooled features: the FID of publications; weights by path (fid_inception.py)
    dinov2      CLS features of a DINOv2 (FD-DINOv2 of arXiv 2306.04675 uses ViT-L/14); its own numbers, no FID
    clip        unit image embeddings of a CLIP (CMMD of arXiv 2401.09603 is a kernel distance on such); no FID either

Pictures are taken as they are: Inception resizes them to 299 without keeping their shape, the others crop a square.
Protocols that crop the real pictures first (COCO to 256, say) want a folder of cropped ones.

Shapes: N pictures, C features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from mentor_rewards.clip_preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from mentor_rewards.clip_reward import CLIP_B32
from mentor_rewards.clip_towers import ClipTower, find_clip
from mentor_rewards.contract import RewardError
from mentor_rewards.dino_checkpoints import find_dino, load_dino
from mentor_rewards.weights import checksum
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.images import over_white
from mentor_rl.evaluate.fid_inception import WEIGHTS, load_inception, resized

DINOV2 = "facebook/dinov2-small"


class Extractor(Protocol):
    """Pictures -> features. ``label`` is what the distances are called, ``name`` goes into results."""

    label: str
    name: str

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Float32 [N, C]."""


class InceptionFeatures:
    """Of the published network."""

    label = "FID"

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        self._network = load_inception(weights).to(device)
        self._device = device
        self.name = f"Inception 2015 {checksum(Path(weights))[:12]}"

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Float32 [N, 2048]."""
        squares = [resized(_bytes(image).to(self._device)) for image in images]
        return np.asarray(self._network(torch.cat(squares)).float().cpu())


class DinoFeatures:
    """CLS features of a DINOv2."""

    label = "FD-DINOv2"

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        model, files = load_dino(weights, "dinov2", "float32")
        self._model: Any = model.to(device)
        self._pixels = Preprocessing(256, 224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        self.name = f"DINOv2 {weights} {checksum(files[0])[:12]}"

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Float32 [N, C]."""
        pixels = self._pixels(images).to(self._model.device)
        return np.asarray(self._model(pixel_values=pixels).last_hidden_state[:, 0].float().cpu())


class ClipFeatures:
    """Unit image embeddings of a CLIP."""

    label = "FD-CLIP"

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        self._tower = ClipTower.load(weights, device, "float32")
        digests = " ".join(digest[:12] for digest in self._tower.checksums.values())
        self.name = f"CLIP {weights} {digests}"

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Float32 [N, C]."""
        return np.asarray(self._tower.image_embeddings(images))


def find_weights(features: str, weights: str | Path | None) -> str | Path:
    """The weights that a recipe means, there or fetched.

    Raises:
        UserError: Inception without a file, or weights that are nowhere.
    """
    if features == "inception":
        if weights is None or not Path(weights).is_file():
            found = "none" if weights is None else f"no file {weights}"
            raise UserError(
                f"weights: expected the file of Inception's weights, {WEIGHTS} (release v0.2.0 of "
                f"github.com/toshas/torch-fidelity), found {found}; or choose features: dinov2 or clip"
            )
        return weights
    source = weights or (DINOV2 if features == "dinov2" else CLIP_B32)
    try:
        find_dino(source, "dinov2") if features == "dinov2" else find_clip(source)
    except RewardError as error:
        raise UserError(f"weights: {error}") from error
    return source


def load_extractor(features: str, weights: str | Path, device: str = "cpu") -> Extractor:
    """The extractor of one of the names above.

    Raises:
        UserError: other weights than that network's.
    """
    kinds: dict[str, type[InceptionFeatures | DinoFeatures | ClipFeatures]] = {
        "inception": InceptionFeatures,
        "dinov2": DinoFeatures,
        "clip": ClipFeatures,
    }
    try:
        return kinds[features](weights, device)
    except RewardError as error:
        raise UserError(f"weights: {error}") from error


def _bytes(image: Image.Image) -> torch.Tensor:
    """float [1, 3, H, W], 0 to 255."""
    return torch.from_numpy(np.array(over_white(image), dtype=np.float32)).permute(2, 0, 1)[None]
