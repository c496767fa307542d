"""Reconstruction: distances with known answers, the geometry, and which pictures are chosen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mentor_base.checkpoint import load_tokenizer_of
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_base.settings import Sampling
from mentor_rl.evaluate.picture_run import run_benchmark
from mentor_rl.evaluate.recipes import ReconstructionRecipe
from mentor_rl.evaluate.reconstruction import (
    SIDE,
    as_the_encoder_sees,
    central_square,
    chosen,
    compare_pictures,
    psnr,
    rmse,
    squared_distance,
)
from mentor_rl.evaluate.reconstruction_bench import Reconstruction
from mentor_rl.evaluate.tokenizer_ceiling import through_tokenizer


def test_distances_with_known_answers() -> None:
    white, grey = np.ones((4, 4, 3)), np.zeros((4, 4, 3))
    far, half = squared_distance(white, -white), squared_distance(white, grey)
    assert (far, rmse(far), psnr(far)) == pytest.approx((4.0, 1.0, 0.0))
    assert (half, rmse(half), psnr(half)) == pytest.approx((1.0, 0.5, 20 * math.log10(2)))
    one_pixel = white.copy()
    one_pixel[0, 0, 0] = -1
    assert squared_distance(white, one_pixel) == pytest.approx(4 / 48)  # mean over rows, columns and channels
    assert (squared_distance(white, white), psnr(0.0)) == (0.0, math.inf)
    with pytest.raises(ValueError, match="one size"):
        squared_distance(white, grey[:2])


def test_uniform_noise_has_the_distance_of_its_variance() -> None:
    """Two independent uniform values on [-1, 1] differ by 2/3 in the mean square."""
    rng = np.random.default_rng(0)
    one, other = rng.uniform(-1, 1, (2, 128, 128, 3))
    assert squared_distance(one, other) == pytest.approx(2 / 3, rel=0.02)


def test_the_central_square_is_compared() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste(Image.new("RGB", (100, 100), "blue"), (100, 0))
    assert central_square(wide).size == (SIDE, SIDE)
    assert compare_pictures(Image.new("RGB", (64, 64), "blue"), wide, side=64) == 0.0
    assert compare_pictures(Image.new("RGB", (64, 64), "red"), wide, side=64) == pytest.approx(4 * 2 / 3)


def test_the_encoder_loses_what_is_finer_than_its_pixels() -> None:
    flat = Image.new("RGB", (64, 64), (90, 120, 30))
    assert compare_pictures(as_the_encoder_sees(flat, 64, 28), flat, side=64) == 0.0
    board = Image.fromarray(np.repeat((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, -1))
    assert compare_pictures(as_the_encoder_sees(board, 64, 28), board, side=64) > 0.9  # a board turns grey: 1


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


def picture_folder(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        spots = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        spots.resize((60, 40), Image.Resampling.BICUBIC).save(folder / f"photo {number}.png")
    return folder


def test_a_policy_stands_beside_tokenizer_and_baselines(random_policy: Path, tmp_path: Path) -> None:
    data = picture_folder(tmp_path / "photos")
    recipe = ReconstructionRecipe(
        kind="evaluate",
        benchmark="reconstruction",
        run=str(tmp_path / "run"),
        data=str(data),
        pictures=3,
        side=48,
        policies={"toy": str(random_policy)},
        tokenizer=str(random_policy),
        sampling=Sampling(guidance_scale=1.0),
    )
    result = run_benchmark(recipe, Reconstruction(recipe), RunFolder.open(recipe.run, recipe.model_dump(mode="json")))
    assert result is not None
    assert set(result.metrics) == {"toy", "toy · tokenizer", "toy · 224 bicubic", "toy · copy"}
    assert result.metrics["toy · copy"] == {"L2": [0, 0, 0], "RMSE": [0, 0, 0], "PSNR": None}
    files = result.per_item["toy"]["file"]
    assert files == [file.name for file in chosen(data, 3, 0)]
    # The row and the ceiling again, by hand.
    vq = load_tokenizer_of(random_policy)
    squares = [central_square(Image.open(data / name), 48) for name in files]
    ceiling = [compare_pictures(m, o, 48) for m, o in zip(through_tokenizer(vq, squares), squares, strict=True)]
    drawn = [Image.open(tmp_path / "run" / "pictures" / "toy" / f"{i:04d}_0.png") for i in range(3)]
    own = [compare_pictures(m, o, 48) for m, o in zip(drawn, squares, strict=True)]
    assert result.metrics["toy · tokenizer"]["L2"][0] == pytest.approx(np.mean(ceiling))
    assert result.metrics["toy"]["L2"][0] == pytest.approx(np.mean(own))
    assert result.metrics["toy"]["PSNR"][0] == pytest.approx(np.mean([psnr(l2) for l2 in own]))
    assert "not comparable" in result.notes[-1]
    page = (tmp_path / "run" / "results" / "reconstruction.md").read_text(encoding="utf-8")
    assert "| MENTOR | 0.1008 | 0.0867 | – |" in page
    assert "| **toy** (ours)[^protocol] |  |  | 0." in page  # in a column of its own


def test_pictures_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    data = picture_folder(tmp_path / "photos")
    (data / "photo 1.png").write_bytes(b"no picture")
    recipe = ReconstructionRecipe(
        kind="evaluate", benchmark="reconstruction", run="run", data=str(data), pictures=4, images={"x": str(data)}
    )
    with pytest.raises(UserError, match=r"1 of the chosen pictures cannot be read: .*photo 1.png"):
        Reconstruction(recipe)
