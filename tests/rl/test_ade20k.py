"""ADE20K-150: two pictures of three classes worked by hand, merging, thresholds, and the layout of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mentor_base.errors import UserError
from mentor_rl.evaluate.ade20k import (
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
    overlap_ious,
    present,
    read_annotation,
    read_names,
    read_scenes,
)


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
    ious = class_ious(counts)
    assert ious[:2].tolist() == pytest.approx([3 / 6, 2 / 4])
    assert np.isnan(ious[2])
    assert mean_iou(ious) == pytest.approx(0.5)
    assert np.isnan(mean_iou(np.array([np.nan])))


def test_protocol_a_sums_over_pictures_and_leaves_other_out() -> None:
    truth = np.array([[1, 1, 2, 0]])
    assert overlap(truth, np.array([[True, False, True, True]]), 1) == (1, 3)  # of "other" nothing counts
    assert overlap(truth, np.array([[False, False, True, True]]), 2) == (1, 1)
    sums = np.array([[1, 3], [1, 1], [0, 0]]) + np.array([[2, 3], [0, 0], [0, 0]])
    ious = overlap_ious(sums)
    assert ious[:2].tolist() == [0.5, 1.0]
    assert np.isnan(ious[2])


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
