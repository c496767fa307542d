"""Random grounds for scenes: flat colours, gradients, stripes, checks, dots and soft blotches.

Shapes: H rows, W columns.
"""

from __future__ import annotations

from functools import cache
from random import Random

import numpy as np
from PIL import Image

from mentor_base.data.shapes import COLOURS

KINDS = ("flat", "gradient", "stripes", "checks", "dots", "blotches")


def random_ground(rng: Random, size: int) -> np.ndarray:
    """A square ground, uint8 [size, size, 3]."""
    kind = rng.choice(KINDS)
    first, second = (_tone(rng) for _ in range(2))
    if kind == "flat":
        return np.broadcast_to(np.asarray(first, np.uint8), (size, size, 3)).copy()
    share_HW = _pattern(kind, rng, size)[:, :, None]
    mixed = np.asarray(first, np.float32) * (1 - share_HW) + np.asarray(second, np.float32) * share_HW
    return mixed.astype(np.uint8)


def _tone(rng: Random) -> tuple[int, ...]:
    """A named colour, moved a little or half-way to white."""
    pale = rng.choice((0.0, 0.0, 0.4, 0.65))
    base = rng.choice(tuple(COLOURS.values()))
    return tuple(min(255, max(0, round(c + (255 - c) * pale + rng.randint(-12, 12)))) for c in base)


def _pattern(kind: str, rng: Random, size: int) -> np.ndarray:
    """Share of the second colour, float32 in [0, 1]."""
    rows_HW, columns_HW = _grid(size)
    turn = rng.uniform(0, 2 * np.pi)
    along_HW = (columns_HW * np.cos(turn) + rows_HW * np.sin(turn)).astype(np.float32)
    if kind == "gradient":
        return np.clip(along_HW / size / 1.3 + 0.5, 0, 1)
    period = rng.uniform(6, 16)
    if kind == "stripes":
        return (along_HW % period < period / 2).astype(np.float32)
    if kind == "checks":
        cell = int(period)
        return ((rows_HW // cell + columns_HW // cell) % 2).astype(np.float32)
    if kind == "dots":
        from_centre_HW = np.hypot(rows_HW % period - period / 2, columns_HW % period - period / 2)
        return (from_centre_HW < period / 3.2).astype(np.float32)
    coarse = np.frombuffer(rng.randbytes(25), np.uint8).reshape(5, 5)
    smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / 255


@cache
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) - (size - 1) / 2
    return rows, columns
