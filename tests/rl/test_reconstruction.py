"""Reconstruction: distances with known answers, the geometry, and which pictures are chosen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mentor_base.errors import UserError
from mentor_rl.evaluate.reconstruction import (
    SIDE,
    as_the_encoder_sees,
    central_square,
    chosen,
    compare_pictures,
    distance,
)


def test_distances_with_known_answers() -> None:
    white, grey = np.ones((4, 4, 3)), np.zeros((4, 4, 3))
    far = distance(white, -white)
    assert (far.l2, far.rmse, far.psnr) == pytest.approx((4.0, 1.0, 0.0))
    half = distance(white, grey)
    assert (half.l2, half.rmse, half.psnr) == pytest.approx((1.0, 0.5, 20 * math.log10(2)))
    one_pixel = white.copy()
    one_pixel[0, 0, 0] = -1
    assert distance(white, one_pixel).l2 == pytest.approx(4 / 48)  # mean over rows, columns and channels
    same = distance(white, white)
    assert (same.l2, same.psnr) == (0.0, math.inf)
    with pytest.raises(ValueError, match="one size"):
        distance(white, grey[:2])


def test_uniform_noise_has_the_distance_of_its_variance() -> None:
    """Two independent uniform values on [-1, 1] differ by 2/3 in the mean square."""
    rng = np.random.default_rng(0)
    one, other = rng.uniform(-1, 1, (2, 128, 128, 3))
    assert distance(one, other).l2 == pytest.approx(2 / 3, rel=0.02)


def test_the_central_square_is_compared() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste(Image.new("RGB", (100, 100), "blue"), (100, 0))
    assert central_square(wide).size == (SIDE, SIDE)
    assert compare_pictures(Image.new("RGB", (64, 64), "blue"), wide, side=64).l2 == 0.0
    assert compare_pictures(Image.new("RGB", (64, 64), "red"), wide, side=64).l2 == pytest.approx(4 * 2 / 3)


def test_the_encoder_loses_what_is_finer_than_its_pixels() -> None:
    flat = Image.new("RGB", (64, 64), (90, 120, 30))
    assert compare_pictures(as_the_encoder_sees(flat, 64, 28), flat, side=64).l2 == 0.0
    board = Image.fromarray(np.repeat((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, -1))
    assert compare_pictures(as_the_encoder_sees(board, 64, 28), board, side=64).l2 > 0.9  # a board turns grey: 1


def test_the_choice_is_that_of_the_seed(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02d}.jpg").touch()
    (tmp_path / "notes.txt").touch()
    first = chosen(tmp_path, 5, seed=0)
    assert first == chosen(tmp_path, 5, seed=0) == sorted(first)
    assert first != chosen(tmp_path, 5, seed=1)
    with pytest.raises(UserError, match=r"expected at least 21 pictures .* found 20"):
        chosen(tmp_path, 21, seed=0)
    with pytest.raises(UserError, match="expected a folder of pictures to reconstruct"):
        chosen(tmp_path / "elsewhere", 5, seed=0)
