"""Image reconstruction: how far the policy's copy of a picture is from it (MENTOR, arXiv 2507.09574, table 4).

The paper says "L2" and nothing of the pixel range, the resizing, the root, the pictures or the prompt; its authors
released no code for it. Decided here: central square, Lanczos to 512, pixels in [-1, 1], mean over rows x columns x 3
of the squared difference, then the mean over pictures. On that reading two unrelated photographs are .55 apart and the
worst published row (.53) is just below; on [0, 1] it would lie far above unrelated pictures. That fits, and proves
nothing: never put these numbers beside table 4 as the same measure.

Beside it stand RMSE and PSNR on [0, 1], and rows that need no policy:
    tokenizer      the picture through the VQ tokenizer: the ceiling of any policy that writes its codes
    224 bicubic    the picture as small as the encoder sees it (224), and large again
    copy           the picture itself: 0, which checks the measure

Pictures: ``pictures`` of a folder, chosen by ``seed`` from the sorted names; their list is written into the result.

Shapes: N pictures, H rows, W columns.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.images import middle, over_white
from mentor_rl.pictures import SUFFIXES, pictures_below

SIDE = 512
SEEN = 224  # the encoder's pixels
PROMPT = "<image> reproduce this image"


def squared_distance(one_HW3: np.ndarray, other_HW3: np.ndarray) -> float:
    """L2 of two pictures of one size in [-1, 1]: the mean over rows, columns and channels, in [0, 4]."""
    if one_HW3.shape != other_HW3.shape:
        raise ValueError(f"expected pictures of one size, found {one_HW3.shape} and {other_HW3.shape}")
    return float(np.mean((one_HW3.astype(np.float64) - other_HW3.astype(np.float64)) ** 2))


def rmse(l2: float) -> float:
    """Root of the mean squared difference on [0, 1], of an L2 on [-1, 1]."""
    return (l2 / 4) ** 0.5


def psnr(l2: float) -> float:
    """In dB, of an L2 on [-1, 1]; infinite for equal pictures."""
    return -10 * math.log10(l2 / 4) if l2 else math.inf


def central_square(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The largest central square, Lanczos to ``side``; alpha over white."""
    square = middle(over_white(image))
    return square if square.size == (side, side) else square.resize((side, side), Image.Resampling.LANCZOS)


def signed(image: Image.Image) -> np.ndarray:
    """float32 [H, W, 3] in [-1, 1]."""
    return np.asarray(image, dtype=np.float32) / np.float32(127.5) - np.float32(1)


def compare_pictures(made: Image.Image, original: Image.Image, side: int = SIDE) -> float:
    """L2 of both, brought to the central square of ``side`` first."""
    return squared_distance(signed(central_square(made, side)), signed(central_square(original, side)))


def as_the_encoder_sees(original: Image.Image, side: int = SIDE, seen: int = SEEN) -> Image.Image:
    """The central square at ``seen`` pixels (bicubic), and back at ``side``."""
    small = central_square(original, side).resize((seen, seen), Image.Resampling.BICUBIC)
    return small.resize((side, side), Image.Resampling.BICUBIC)


def chosen(folder: str | Path, pictures: int, seed: int) -> list[Path]:
    """``pictures`` files of a folder and what lies below it: the same ones for the same names and seed, sorted.

    Raises:
        UserError: no such folder, or fewer pictures than asked for.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder of pictures to reconstruct, e.g. COCO's val2017, found none")
    names = sorted(file.relative_to(root).as_posix() for file in pictures_below(root))
    if len(names) < pictures:
        raise UserError(f"{root}: expected at least {pictures} pictures ({', '.join(SUFFIXES)}), found {len(names)}")
    return [root / name for name in sorted(random.Random(seed).sample(names, pictures))]
