"""The ceiling of any policy: pictures that went through its VQ tokenizer, without a policy's mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from mentor_base.images import to_images, to_pixels

if TYPE_CHECKING:
    from mentor_base.vq import VQModel


def through_tokenizer(vq: VQModel, images: Sequence[Image.Image], batch: int = 64) -> list[Image.Image]:
    """Encode and decode -> squares of the tokenizer's side."""
    import torch

    out: list[Image.Image] = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            pixels = to_pixels(images[start : start + batch], size=vq.config.image_size).to(vq.device)
            out += to_images(vq.decode(vq.encode(pixels)))
    return out
