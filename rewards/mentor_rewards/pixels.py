"""PIL pictures -> float arrays, without torchvision. Shapes: M pictures, H rows, W columns."""

from __future__ import annotations

from collections.abc import Sequence

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


def short_side_crop(image: Image.Image, short: int, crop: int, resample: Image.Resampling) -> Image.Image:
    """CLIP's geometry: the short side to ``short`` pixels, then the central square of side ``crop``."""
    picture = rgb(image)
    width, height = picture.size
    if min(width, height) != short:
        ratio = short / min(width, height)
        # The long side is floored, as in CLIP and in transformers.
        width, height = max(short, int(width * ratio)), max(short, int(height * ratio))
        picture = picture.resize((width, height), resample)
    left, top = (width - crop) // 2, (height - crop) // 2
    return picture.crop((left, top, left + crop, top + crop))
