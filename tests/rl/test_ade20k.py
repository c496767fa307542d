"""ADE20K-150: two pictures of three classes worked by hand, merging, thresholds, and the layout of the data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from mentor_base.checkpoint import load_tokenizer_of
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_base.settings import Sampling
from mentor_rl.evaluate.ade20k import (
    TAUS,
    best_tau,
    box_sum,
    class_ious,
    composite,
    confusion,
    foreground,
    mean_iou,
    merged,
    nearest_resize,
    overlap,
    present,
    read_annotation,
    read_names,
    read_scenes,
    square,
    tally,
)
from mentor_rl.evaluate.ade20k_bench import Ade20k
from mentor_rl.evaluate.picture_run import run_benchmark
from mentor_rl.evaluate.recipes import Ade20kRecipe
from mentor_rl.evaluate.result import Result
from mentor_rl.evaluate.tokenizer_ceiling import through_tokenizer


def test_two_pictures_of_three_classes_by_hand() -> None:
    """True against predicted, "other" pixels left out:

    picture 1   1 -> 1, 1, 2    2 -> 2, 2
    picture 2   1 -> 1, none    2 -> 1          and class 3 is claimed where "other" is, which counts nowhere
    Class 1: 3 right, 5 true, 4 claimed: 3 / 6. Class 2: 2 right, 3 true, 3 claimed: 2 / 4. Class 3 is never true.
    """
    truth = [np.array([[1, 1, 1], [2, 2, 0]]), np.array([[1, 1], [2, 0]])]
    maps = [np.array([[1, 1, 2], [2, 2, 1]]), np.array([[1, 0], [1, 3]])]
    counts = sum(confusion(t, m, classes=3) for t, m in zip(truth, maps, strict=True))
    assert counts.tolist() == [[1, 3, 1, 0], [0, 1, 2, 0], [0, 0, 0, 0]]
    assert tally(counts).tolist() == [[3, 6, 5], [2, 4, 3], [0, 0, 0]]
    ious = class_ious(tally(counts))
    assert ious[:2].tolist() == pytest.approx([3 / 6, 2 / 4])
    assert np.isnan(ious[2])
    assert mean_iou(tally(counts)) == pytest.approx(0.5)
    assert np.isnan(mean_iou(np.zeros((3, 3))))


def test_protocol_a_sums_over_pictures_and_leaves_other_out() -> None:
    truth = np.array([[1, 1, 2, 0]])
    assert overlap(truth, np.array([[True, False, True, True]]), 1) == (1, 3, 2)  # of "other" nothing counts
    assert overlap(truth, np.array([[False, False, True, True]]), 2) == (1, 1, 1)
    sums = np.array([[1, 3, 2], [1, 1, 1], [0, 0, 0]]) + np.array([[2, 3, 2], [0, 0, 0], [0, 0, 0]])
    assert class_ious(sums)[:2].tolist() == [0.5, 1.0]
    assert mean_iou(np.stack([sums, sums])).tolist() == [0.75, 0.75]


def scene() -> tuple[Image.Image, np.ndarray]:
    """Left half bright red (class 1), right half bright blue (class 2)."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8, 0], pixels[:, 8:, 2] = 200, 200
    return Image.fromarray(pixels), np.repeat([[1] * 8 + [2] * 8], 16, axis=0)


def test_true_cut_outs_give_the_truth_back() -> None:
    picture, truth = scene()
    drawings = [composite(picture, truth == label) for label in present(truth)]
    assert (merged(picture, drawings, [1, 2]) == truth).all()


def test_a_contested_pixel_goes_to_the_drawing_nearest_to_the_picture() -> None:
    picture, truth = scene()
    greedy = Image.new("RGB", (16, 16), (200, 0, 0))  # class 1 claims everything, in its own colour
    blue = composite(picture, truth == 2)
    both = merged(picture, [greedy, blue], [1, 2])
    assert (both == truth).all()
    assert (merged(picture, [blue, greedy], [2, 1]) == both).all()  # whatever the order
    # Equal drawings tie: the smaller mask wins.
    small = composite(picture, np.indices((16, 16))[0] < 8)
    top = merged(picture, [picture, small], [1, 2])
    assert (top[:5] == 2).all()  # windows that the cut does not reach
    assert (top[8:] == 1).all()
    assert (merged(picture, [Image.new("RGB", (16, 16))], [1]) == 0).all()  # nobody claims anything


def test_thresholds() -> None:
    picture, truth = scene()
    dark = composite(Image.fromarray((np.asarray(picture) * 0.1).astype(np.uint8)), truth == 1)  # 20 of 255
    assert not foreground(dark).any()  # dark objects are lost at 24
    assert (foreground(dark, tau=19) == (truth == 1)).all()
    noisy = Image.fromarray(np.asarray(dark) + np.uint8(9))  # a ground of 9 and an object of 29
    tau, scores = best_tau([noisy], [truth == 1], candidates=(4, 8, 12, 28, 32))
    assert (tau, scores[4], scores[8], scores[12], scores[32]) == (12, 0.5, 0.5, 1.0, 0.0)


def test_sizes_and_windows() -> None:
    values = np.array([[1, 2], [3, 4]])
    assert nearest_resize(values, (4, 6)).tolist() == [[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 4, 4, 4]] * 2
    assert nearest_resize(np.arange(9).reshape(3, 3), (1, 1)).tolist() == [[4]]
    spot = np.zeros((7, 7), int)
    spot[3, 3] = 2
    assert box_sum(spot).tolist()[3] == [0, 2, 2, 2, 2, 2, 0]
    assert box_sum(np.ones((3, 9), int)).tolist() == [[25] * 9] * 3  # the border is repeated


NAMES = "Idx\tRatio\tTrain\tVal\tName\n" + "".join(
    f"{k} \t0.1\t10\t2\tthing {k}, synonym \n" if k != 10 else "10\t0.02\t1\t1\tgrass\n" for k in range(1, 151)
)


def ade_folder(folder: Path, scenes: int = 2) -> Path:
    for kind in ("images", "annotations"):
        (folder / kind / "validation").mkdir(parents=True)
    (folder / "objectInfo150.txt").write_text(NAMES)
    picture, truth = scene()
    for number in range(1, scenes + 1):
        picture.save(folder / "images" / "validation" / f"ADE_val_{number:08d}.jpg", quality=100)
        annotation = Image.fromarray(truth.astype(np.uint8))
        annotation.save(folder / "annotations" / "validation" / f"ADE_val_{number:08d}.png")
    return folder


def test_the_layout_is_checked(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"images/validation: no such folder; expected the layout of ADEChallengeData2016"
    ):
        read_scenes(tmp_path / "nowhere")
    root = ade_folder(tmp_path / "ade")
    assert [each.name for each in read_scenes(root)] == ["ADE_val_00000001", "ADE_val_00000002"]
    assert read_annotation(read_scenes(root)[0].annotation).max() == 2
    names = read_names(root)
    assert (len(names), names[0], names[9], names[149]) == (150, "thing 1", "grass", "thing 150")
    (root / "images" / "validation" / "ADE_val_00000002.jpg").unlink()
    with pytest.raises(UserError, match=r"picture or annotation is missing for ADE_val_00000002"):
        read_scenes(root)
    (root / "objectInfo150.txt").write_text(NAMES.replace("150 \t", "151 \t"))
    with pytest.raises(UserError, match="expected the classes 1 to 150"):
        read_names(root)
    colour = root / "annotations" / "validation" / "ADE_val_00000001.png"
    Image.new("RGB", (4, 4)).save(colour)
    with pytest.raises(UserError, match="expected one channel of labels 0 to 150"):
        read_annotation(colour)
    Image.new("L", (4, 4), 151).save(colour)
    with pytest.raises(UserError, match="largest value 151"):
        read_annotation(colour)


def recipe_of(root: Path, run: Path, **changes: Any) -> Ade20kRecipe:
    return Ade20kRecipe(kind="evaluate", benchmark="ade20k", run=str(run), data=str(root), side=16, **changes)


def run_of(recipe: Ade20kRecipe) -> Result:
    result = run_benchmark(recipe, Ade20k(recipe), RunFolder.open(recipe.run, recipe.model_dump(mode="json")))
    assert result is not None
    return result


def cut_outs(root: Path, folder: Path, labels: Sequence[int] = (1, 2)) -> Path:
    """The true drawings; black ones for labels that no picture shows."""
    folder.mkdir()
    for each in read_scenes(root):
        picture, truth = square(Image.open(each.image), 16), read_annotation(each.annotation)
        for label in labels:
            composite(picture, truth == label).save(folder / f"{each.name}_{label:03d}_0.png")
    return folder


def test_perfect_drawings_reach_one_in_every_protocol(tmp_path: Path) -> None:
    root = ade_folder(tmp_path / "ade", scenes=1)
    drawn = cut_outs(root, tmp_path / "drawn", range(1, 151))
    both = run_of(recipe_of(root, tmp_path / "all", labels="all", images={"true": str(drawn)}))
    assert {name: value[0] for name, value in both.metrics["true"].items()} == {f"mIoU {p}": 1 for p in "ABC"}
    assert both.details["settings"].items() >= {"labels": "all", "side": 16}.items()
    assert "0.1991" not in (tmp_path / "all" / "results" / "ade20k.md").read_text(encoding="utf-8")
    # One more label that claims a part of the left half, as true as the right one: only C asks for it.
    part = composite(square(Image.open(read_scenes(root)[0].image), 16), np.indices((16, 16)).sum(0) < 8)
    part.save(drawn / "ADE_val_00000001_003_0.png")
    spoilt = run_of(recipe_of(root, tmp_path / "spoilt", labels="all", images={"true": str(drawn)}))
    assert spoilt.metrics["true"]["mIoU B"][0] == 1
    assert spoilt.metrics["true"]["mIoU C"][0] < 1


def test_seeds_of_a_label_are_averaged(tmp_path: Path) -> None:
    """Of two drawings of each label one is true and one is black: half, pooled and item by item."""
    root = ade_folder(tmp_path / "ade")
    drawn = cut_outs(root, tmp_path / "drawn")
    for file in sorted(drawn.glob("*_0.png")):
        Image.new("RGB", (16, 16)).save(drawn / file.name.replace("_0.png", "_1.png"))
    result = run_of(recipe_of(root, tmp_path / "run", images={"half": str(drawn)}, seeds=(0, 1)))
    assert result.metrics["half"]["mIoU A"] == [0.5, 0.5, 0.5]
    assert result.per_item["half"]["IoU"] == [0.5] * 4


def test_a_policy_stands_beside_the_ceiling(random_policy: Path, tmp_path: Path) -> None:
    root = ade_folder(tmp_path / "ade")
    given = {"policies": {"toy": str(random_policy)}, "tokenizer": str(random_policy)}
    result = run_of(recipe_of(root, tmp_path / "run", **given, sampling=Sampling(guidance_scale=1.0)))
    assert set(result.metrics) == {"toy", "toy · ceiling"}
    assert result.per_item["toy"]["item"] == [f"ADE_val_{n:08d}_{k:03d}" for n in (1, 2) for k in (1, 2)]
    # The ceiling again, by hand: the two pictures are equal, so one will do.
    each = read_scenes(root)[0]
    vq, truth = load_tokenizer_of(random_policy), read_annotation(each.annotation)
    picture = square(Image.open(each.image), vq.config.image_size)
    through = through_tokenizer(vq, [composite(picture, truth == k) for k in (1, 2)])
    sums = np.zeros((2, 3))
    for k in (1, 2):
        sums[k - 1] = overlap(truth, nearest_resize(foreground(through[k - 1]), (16, 16)), k)
    assert result.metrics["toy · ceiling"]["mIoU A"][0] == pytest.approx(float(mean_iou(sums)))
    whole = tally(confusion(truth, nearest_resize(merged(picture, through, [1, 2]), (16, 16))))
    assert result.metrics["toy · ceiling"]["mIoU B"][0] == pytest.approx(float(mean_iou(whole)))


def test_a_ceiling_without_its_files_is_told_by_the_check(tmp_path: Path) -> None:
    root, empty = ade_folder(tmp_path / "ade"), tmp_path / "empty"
    empty.mkdir()
    benchmark = Ade20k(recipe_of(root, tmp_path, images={"x": "x"}, tokenizer=str(empty)))
    with pytest.raises(UserError, match=r"empty: expected a model folder or a finished run"):
        benchmark.check()
    (empty / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"empty: expected the tokenizer's weights, \*\.safetensors, found none"):
        benchmark.check()


def test_tau_is_tuned_on_training_pictures(random_policy: Path, tmp_path: Path) -> None:
    root = ade_folder(tmp_path / "ade")
    recipe = recipe_of(root, tmp_path, images={"x": "x"}, tokenizer=str(random_policy), tune_tau=1)
    with pytest.raises(UserError, match="training"):  # told by the check, not after the drawing
        Ade20k(recipe).check()
    for kind in ("images", "annotations"):
        shutil.copytree(root / kind / "validation", root / kind / "training")
    benchmark = Ade20k(recipe)
    benchmark.check()
    benchmark.load("cpu")
    assert benchmark.tau in TAUS
    assert f"> {benchmark.tau}/255" in benchmark.judge
    with pytest.raises(ValidationError, match="tune_tau needs tokenizer"):
        recipe_of(root, tmp_path, images={"x": "x"}, tune_tau=1)
