"""Drawings over flat colours: how the emoji world puts its pictures together.

Shapes: H rows, W columns; a drawing is uint8 [h, w, 4] with straight alpha, a canvas uint8 [H, W, 3].
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from mentor_base.data.atlas import SIZE
from mentor_base.data.shapes import COLOURS

# Grounds for emoji. Black is left out: line art would vanish on it.
BACKGROUNDS: tuple[str, ...] = tuple(name for name in COLOURS if name != "black")


def flat(ground: str) -> np.ndarray:
    """A canvas of one colour, a key of COLOURS; uint8 [SIZE, SIZE, 3]."""
    canvas = np.empty((SIZE, SIZE, 3), np.uint8)
    canvas[:] = COLOURS[ground]
    return canvas


def compose(canvas_HW3: np.ndarray, drawing: np.ndarray, left: int, top: int) -> None:
    """Lay a drawing over part of a canvas, in place; it has to lie inside."""
    height, width = drawing.shape[:2]
    patch = canvas_HW3[top : top + height, left : left + width]
    alpha = drawing[:, :, 3:].astype(np.uint16)
    mixed = drawing[:, :, :3] * alpha + patch * (255 - alpha) + 127
    patch[:] = mixed // 255


def over(drawing: np.ndarray, ground: str) -> Image.Image:
    """A drawing at full size over a flat colour."""
    canvas = flat(ground)
    compose(canvas, drawing, 0, 0)
    return Image.fromarray(canvas)


def turned(drawing: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    """The visible part of a drawing, rotated and scaled, at most as large as the picture."""
    image = Image.fromarray(drawing).rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    image = image.crop(image.getbbox())
    scale = min(scale, SIZE / max(image.size))
    return np.asarray(image.resize([max(1, int(side * scale)) for side in image.size], Image.Resampling.BOX))


def vanishing_on(drawing: np.ndarray) -> list[str]:
    """The grounds to which more than a third of a drawing is near."""
    sparse = drawing[::2, ::2]
    inside = sparse[sparse[:, :, 3] >= 128][:, None, :3].astype(np.int32)
    near = ((inside - np.array([COLOURS[name] for name in BACKGROUNDS])) ** 2).sum(2) < 60**2
    return [name for name, count in zip(BACKGROUNDS, near.sum(0), strict=True) if count > len(inside) / 3]
