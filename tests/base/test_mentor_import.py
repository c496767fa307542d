"""MENTOR's rows: what each flag means, what is refused, and pictures that depend on seed and line alone."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from row_files import write_jsonl

from mentor_base.data.broken import BrokenRows
from mentor_base.data.composites import binary_mask, cut_out, distracting_scene, object_crop
from mentor_base.data.jsonl import JsonlFile
from mentor_base.data.mentor_import import ImportCounts, ImportOptions, import_mentor, read_backgrounds
from mentor_base.data.mentor_rows import parse_mentor_row, read_mentor_rows
from mentor_base.data.rows import FilePicture
from mentor_base.errors import UserError

SIDE = 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """photo.png: 48 x 32, red on the left third; mask.png: that third, as 0 and 1; other.png; behind.png: blue."""
    photo = np.zeros((32, 48, 3), dtype=np.uint8)
    photo[:, :16, 0], photo[:, 16:, 1] = 200, 200
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray((photo[..., 0] > 0).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray((photo[..., 1] > 0).astype(np.uint8) * 255).save(tmp_path / "rest.png")
    Image.new("L", (8, 8)).save(tmp_path / "empty.png")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "other.png")
    Image.new("RGB", (20, 10), (0, 0, 255)).save(tmp_path / "behind.png")
    return tmp_path


def mentor_row(**changes: Any) -> dict[str, Any]:
    fields = {
        "image_path": "other.png",
        "source_image": "photo.png",
        "input_text": "<image> a red wall",
        "objects": None,
    }
    return {**fields, **changes}


T2I = mentor_row(generation_only=True)
RECONSTRUCTION = mentor_row(global_idx=3)
SEGMENTATION = mentor_row(objects="wall", do_mask=True, image_path="mask.png", source_image=["photo.png"])
RECOVERY = mentor_row(objects="wall", do_replace=True, image_path="mask.png")
SUBJECT = mentor_row(objects="wall", do_mask=False)
SEVERAL = mentor_row(objects=["wall", "lawn"], image_path=["mask.png", "rest.png"])
IN_CONTEXT = mentor_row(input_img_list=["other.png", "behind.png"], input_text="<image> on <image>", objects=["a", "b"])
ALL = (T2I, RECONSTRUCTION, SEGMENTATION, RECOVERY, SUBJECT, SEVERAL, IN_CONTEXT)


def convert(folder: Path, *rows: Any, out: str = "out", rate: float = 1.0, **options: Any) -> ImportCounts:
    source = write_jsonl(folder, *rows, name="stage.jsonl")
    settings = ImportOptions(**{"root": folder, "backgrounds": (folder / "behind.png",), "size": SIDE, **options})
    return import_mentor(source, folder / out, settings, BrokenRows(rate, folder / out / "broken.jsonl"))


def rows_of(folder: Path, out: str = "out") -> JsonlFile:
    return JsonlFile(folder / out / "rows.jsonl")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def test_every_kind_of_row(folder: Path) -> None:
    counts = convert(folder, *ALL)
    rows = {row.task: row for row in rows_of(folder)}
    assert list(rows) == ["t2i", "reconstruction", "segmentation", "recovery", "subject", "multi_image", "in_context"]
    assert [rows[task].text for task in rows] == [
        "a red wall",
        "The image is <image>\na red wall",
        "The wall in <image>.",
        "The wall in <image>.\na red wall",
        "The wall in <image>.\na red wall",
        "The wall in <image>.\nThe lawn in <image>.\na red wall",
        "<image> on <image>",
    ]
    files = {
        task: ([_file(each) for each in row.images], _file(row.target)) for task, row in rows.items() if row.task != "x"
    }
    assert files["t2i"] == ([], "other.png"), "image_path is the target"
    assert files["reconstruction"] == (["photo.png"], "other.png"), "image_path is the target"
    assert files["segmentation"] == (["photo.png"], "000000003.target.png"), "image_path is the mask"
    assert files["recovery"] == (["000000004.scene0.jpg"], "photo.png"), "image_path is the mask"
    assert files["subject"] == (["other.png"], "photo.png"), "image_path is the reference"
    assert files["multi_image"] == (["000000006.object0.0.jpg", "000000006.object1.0.jpg"], "photo.png")
    assert files["in_context"] == (["other.png", "behind.png"], "photo.png")
    assert {task for task, row in rows.items() if row.subject == "wall"} == {"segmentation", "recovery", "subject"}
    assert counts.written == counts.read
    assert counts.pictures == {"segmentation": 2, "recovery": 2, "multi_image": 2}
    assert all(row.load() for row in rows.values()), "masks have the size of their targets"


def _file(picture: Any) -> str:
    assert isinstance(picture, FilePicture)
    return picture.path.name


def test_a_linked_folder_finds_its_pictures(folder: Path) -> None:
    (folder / "on" / "another" / "disk").mkdir(parents=True)
    (folder / "linked").symlink_to(folder / "on" / "another" / "disk", target_is_directory=True)
    convert(folder, T2I, out="linked/out")
    assert rows_of(folder, "linked/out")[0].load().target.getpixel((0, 0)) == (9, 9, 9)


def test_segmentation_is_the_object_on_black(folder: Path) -> None:
    convert(folder, SEGMENTATION)
    example = rows_of(folder)[0].load()
    assert example.mask is not None
    assert example.target.size == example.mask.size == (SIDE, SIDE)
    target, mask = pixels(example.target), np.asarray(example.mask)
    assert set(np.unique(mask)) == {0, 255}
    assert abs((mask > 0).mean() - 1 / 3) < 0.03
    assert target[mask == 0].max() == 0
    assert target[:, :8].reshape(-1, 3).tolist() == [[200, 0, 0]] * (SIDE * 8)


def test_scenes_hold_the_object_on_the_background(folder: Path) -> None:
    image = Image.new("RGB", (64, 64), (200, 0, 0))
    mask = Image.new("L", (64, 64), 255)
    shares = []
    for k in range(200):
        scene = pixels(distracting_scene(image, mask, Image.open(folder / "behind.png"), Random(k)))
        assert scene.shape == (64, 64, 3)
        assert scene[..., 1].max() <= 2, "nothing but red object and blue background"
        shares.append((scene[..., 0] > 100).mean())
    assert min(shares) > 0.015, "no object is lost"
    assert 0.25 < float(np.mean(shares)) < 0.5, "the mean of U(.2, 1) squared is .41; tilted ones are smaller"


def test_crops_are_square_and_masks_of_one_count(folder: Path) -> None:
    photo = Image.open(folder / "photo.png").convert("RGB")
    mask = binary_mask(Image.open(folder / "mask.png"), photo.size)
    assert pixels(cut_out(photo, mask))[:, 16:].max() == 0
    for k in range(4):
        crop = pixels(object_crop(photo, mask, Random(k)))
        assert crop.shape == (32, 32, 3)
        assert (crop[:, 8:24, 0] == 200).all()
        assert crop[:, :8].max() == crop[:, 24:].max() == 0


def test_a_line_becomes_the_same_whatever_is_around_it(folder: Path) -> None:
    convert(folder, *ALL, variants=2)
    convert(folder, T2I, T2I, mentor_row(objects="x", do_mask=True, image_path="empty.png"), *ALL[3:], out="b", limit=4)
    convert(folder, *ALL, out="c", seed=1)
    first, second, third = (
        [(folder / out / f"pictures/000000/000000004.scene{k}.jpg").read_bytes() for k in range(count)]
        for out, count in (("out", 2), ("b", 1), ("c", 1))
    )
    assert first[0] == second[0]
    assert first[0] != third[0]
    assert first[0] != first[1]
    assert [row.task for row in rows_of(folder)].count("recovery") == 2


def test_broken_pictures_are_left_out_and_named(folder: Path) -> None:
    bad = [mentor_row(objects="x", do_mask=True, image_path=name) for name in ("empty.png", "none.png")]
    counts = convert(folder, T2I, *bad, SUBJECT)
    assert (counts.written.total(), counts.broken["segmentation"]) == (2, 2)
    report = (folder / "out" / "broken.jsonl").read_text()
    assert "stage.jsonl:2" in report
    assert "an empty mask" in report
    assert "no such file" in report
    with pytest.raises(UserError, match=r"stage.jsonl:2: image_path: .* found .*empty.png: an empty mask"):
        convert(folder, T2I, *bad, out="strict", rate=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (mentor_row(do_maks=True), "unknown key 'do_maks'; did you mean 'do_mask'"),
        (mentor_row(do_mask="yes"), 'do_mask: expected true or false, found "yes"'),
        (
            mentor_row(objects="a", do_mask=True, do_replace=True),
            "expected at most one of .*, found do_mask and do_replace",
        ),
        (mentor_row(do_mask=True), "objects: expected the name of one object with do_mask, found null"),
        (mentor_row(objects=["a"], do_replace=True), "objects: expected the name of one object with do_replace"),
        (mentor_row(objects="a", generation_only=True), 'objects: expected null with generation_only, found "a"'),
        (
            mentor_row(objects=["a"], image_path=["x", "y"]),
            "image_path: expected a mask for each of 1 objects, found 2",
        ),
        (mentor_row(objects=["a"]), 'image_path: expected a list of texts, found "other.png"'),
        (mentor_row(source_image=["a", "b"]), "source_image: expected one picture, found 2"),
        (mentor_row(input_img_list=["a"], input_text="no mark"), "input_text: expected one <image> mark per picture"),
        (mentor_row(input_text="<image> "), "input_text: expected a caption, found marks alone"),
        (mentor_row(image_path=None), "image_path: expected a text that is not empty, found null"),
        ({"image_path": "x", "source_image": "y"}, "expected the key 'input_text', found image_path, source_image"),
        ({"input_image": "x"}, "expected a row to train on, found one of a list of backgrounds; see --backgrounds"),
    ],
)
def test_rows_that_make_no_sense(folder: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"stage.jsonl:2: " + message):
        convert(folder, T2I, row)
    assert not (folder / "out").exists(), "nothing is written"


def test_options(folder: Path) -> None:
    with pytest.raises(UserError, match=r"expected --backgrounds, .* of 1 rows of recovery; found none"):
        convert(folder, RECOVERY, backgrounds=())
    moved = mentor_row(image_path="gone/away/other.png", extra=1)
    convert(folder, moved, moved=(("gone/away/", ""),), ignore=("extra",))
    assert rows_of(folder)[0].load().target.getpixel((0, 0)) == (9, 9, 9)
    listed = write_jsonl(folder, {"input_image": "behind.png"}, name="cc12m.jsonl")
    assert read_backgrounds(listed, ImportOptions(folder)) == (folder / "behind.png",)
    with pytest.raises(UserError, match=r"cc12m.jsonl:1: expected the key 'input_image'"):
        read_backgrounds(write_jsonl(folder, {"image": "x"}, name="cc12m.jsonl"), ImportOptions(folder))
    source = write_jsonl(folder, T2I, "{", T2I)
    assert [isinstance(row, UserError) for row in read_mentor_rows(source)] == [False, True, False]
    assert (
        parse_mentor_row(b'{"image_path":"a","source_image":"b","input_text":"c"}', source, 1).task == "reconstruction"
    )
