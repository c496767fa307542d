"""Pictures as CLIP-shaped and DINO networks want them, with PIL and torch alone: no torchvision.

Shapes: M pictures, H rows, W columns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image

from mentor_rewards.contract import RewardError
from mentor_rewards.pixels import rgb, short_side_crop
from mentor_rewards.pretrained import read_json

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's pixel statistics
STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_FILE = "preprocessor_config.json"


class PixelsOf(Protocol):
    """A preprocessing: hashable, equal when it makes the same pixels."""

    @property
    def side(self) -> int:
        """Rows and columns of what comes out."""

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Float32 pixels_M3HW."""


@dataclass(frozen=True)
class Preprocessing:
    """Short side to ``short``, central square of ``crop``, per-channel (x - mean) / std on [0, 1].

    ``odd_margin`` says where an odd margin of the crop goes: transformers floors its half, torchvision rounds it.
    """

    short: int = 224
    crop: int = 224
    resample: int = int(Image.Resampling.BICUBIC)
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    odd_margin: Literal["floor", "round"] = "floor"

    @property
    def side(self) -> int:
        """The side of the crop."""
        return self.crop

    @classmethod
    def load(cls, folder: Path) -> Preprocessing:
        """From ``preprocessor_config.json``, old or new spelling of the sizes."""
        path = folder / _FILE
        facts = read_json(path)
        try:
            size, crop = facts["size"], facts["crop_size"]
            return cls(
                short=size if isinstance(size, int) else size["shortest_edge"],
                crop=crop if isinstance(crop, int) else crop["height"],
                resample=facts.get("resample", int(Image.Resampling.BICUBIC)),
                mean=tuple(facts["image_mean"]),
                std=tuple(facts["image_std"]),
            )
        except (KeyError, TypeError) as error:
            raise RewardError(f"{path}: expected CLIP preprocessing, could not find {error}") from error

    def save(self, folder: Path) -> None:
        """Write it so that ``load``, and transformers' CLIP image processors, read the same."""
        facts = {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.short},
            "resample": self.resample,
            "do_center_crop": True,
            "crop_size": {"height": self.crop, "width": self.crop},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }
        (folder / _FILE).write_text(json.dumps(facts, indent=2) + "\n")

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Float32 pixels_M3HW."""
        pixels = np.empty((len(images), self.crop, self.crop, 3), dtype=np.float32)
        for m, image in enumerate(images):
            square = short_side_crop(image, self.short, self.crop, Image.Resampling(self.resample), self.odd_margin)
            pixels[m] = np.asarray(square)
        return _normalised(torch.from_numpy(pixels / np.float32(255)).permute(0, 3, 1, 2), self.mean, self.std)


@dataclass(frozen=True)
class Letterbox:
    """HPSv2's: the long side to ``side`` (bicubic, on the float tensor), black bars to a square, CLIP's statistics.

    Source: ``ResizeMaxSize`` of the package hpsv2 1.2.0 (src/open_clip/transform.py). Departures: a picture whose
    long side is ``side`` already is padded too (upstream leaves it oblong, and the network then fails on it), and a
    side never shrinks below one pixel.

    ``antialias``: what torchvision's resize of tensors does since 0.17; False is what older ones did. Values beyond
    [0, 1], which bicubic filters make, are kept, as in torchvision.
    """

    side: int = 224
    antialias: bool = True
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Float32 pixels_M3HW."""
        if not images:
            return torch.empty(0, 3, self.side, self.side)
        return _normalised(torch.stack([self._square(image) for image in images]), self.mean, self.std)

    def _square(self, image: Image.Image) -> torch.Tensor:
        pixels_HW3 = torch.from_numpy(np.array(rgb(image), dtype=np.float32) / np.float32(255))
        pixels = pixels_HW3.permute(2, 0, 1)[None]
        scale = self.side / max(pixels.shape[2:])
        height, width = (max(1, round(length * scale)) for length in pixels.shape[2:])
        if (height, width) != tuple(pixels.shape[2:]):
            pixels = torch.nn.functional.interpolate(
                pixels, (height, width), mode="bicubic", align_corners=False, antialias=self.antialias
            )
        above, left = (self.side - height) // 2, (self.side - width) // 2
        return torch.nn.functional.pad(pixels[0], (left, self.side - width - left, above, self.side - height - above))


def _normalised(
    pixels_M3HW: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> torch.Tensor:
    return ((pixels_M3HW - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)).contiguous()
