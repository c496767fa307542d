"""PIL pictures as RGB, as float arrays, and as a digest, without torchvision. Shapes: M pictures, H rows, W columns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

WHITE = (255, 255, 255)


def rgb(image: Image.Image) -> Image.Image:
    """RGB of any picture; transparent parts become white."""
    if image.mode == "RGB":
        return image
    rgba = image.convert("RGBA")
    ground = Image.new("RGB", rgba.size, WHITE)
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def picture_digest(image: Image.Image) -> bytes:
    """SHA-256 of what is seen: pixels, mode, size and transparent colour."""
    digest = hashlib.sha256(repr((image.mode, image.size, image.info.get("transparency"))).encode())
    digest.update(image.tobytes())
    return digest.digest()


def squares(
    images: Sequence[Image.Image], size: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> np.ndarray:
    """Squares of side ``size``, float32 in [0, 1], [M, H, W, 3]; other shapes are stretched, as in mentor_base."""
    arrays = np.empty((len(images), size, size, 3), dtype=np.float32)
    for m, image in enumerate(images):
        picture = rgb(image)
        if picture.size != (size, size):
            picture = picture.resize((size, size), resample)
        arrays[m] = np.asarray(picture)
    return arrays / np.float32(255)


def short_side_crop(
    image: Image.Image,
    short: int,
    crop: int,
    resample: Image.Resampling,
    odd_margin: Literal["floor", "round"] = "floor",
) -> Image.Image:
    """CLIP's geometry: the short side to ``short`` pixels, then the central square of side ``crop``.

    ``odd_margin``: half of an odd margin is floored as in transformers, or rounded to even as in torchvision.
    """
    picture = rgb(image)
    shorter = min(picture.size)
    if shorter != short:
        # The long side is floored, as in CLIP and in transformers.
        picture = picture.resize((picture.width * short // shorter, picture.height * short // shorter), resample)
    half = (lambda margin: margin // 2) if odd_margin == "floor" else (lambda margin: round(margin / 2))
    left, top = half(picture.width - crop), half(picture.height - crop)
    return picture.crop((left, top, left + crop, top + crop))
