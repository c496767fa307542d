"""Rows on disk: strict lines, lazy pixels, every error on one line that says where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mentor_base.data.mixture import MixtureDataset, world_of
from mentor_base.data.sources import JsonlWorld, read_jsonl
from mentor_base.errors import UserError
from mentor_base.settings import JsonlData, Mixture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    for k in range(5):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / f"{k}.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    (tmp_path / "text.png").write_text("not a picture")
    Image.effect_noise((64, 64), 90).save(tmp_path / "noise.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "noise.png").read_bytes()[:900])
    return tmp_path


def row(**changes: Any) -> dict[str, Any]:
    return {"task": "subject", "text": "<image> this fox", "images": ["0.png"], "target": "1.png", **changes}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def test_rows_become_examples(folder: Path) -> None:
    path = write(
        folder,
        row(subject="fox", mask="mask.png", meta={"style": "flat"}),
        "",
        row(task="t2i", text="a fox", images=[], target="clear.png", subject=None),
    )
    first, second = (entry.load() for entry in read_jsonl(path))
    assert (first.task, first.subject, first.meta["style"]) == ("subject", "fox", "flat")
    assert first.meta["where"] == f"{path}:1"
    assert first.mask is not None
    assert first.images[0].getpixel((0, 0)) == (0, 0, 0)
    assert second.meta["where"] == f"{path}:3"
    assert second.target.getpixel((0, 0)) == (255, 255, 255), "alpha goes over white"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(imgaes=[]), "unknown key 'imgaes'; did you mean 'images'"),
        (row(task="subjct"), "unknown task 'subjct'; did you mean 'subject'"),
        (row(images=["no.png"]), r"images\[0\]: expected a readable picture, found .*no.png: no such file"),
        (row(images=["text.png"]), r"images\[0\]: expected a readable picture, found .*text.png of another kind"),
        (row(images=["."]), r"images\[0\]: expected a readable picture, found .*: Is a directory"),
        (row(target="no.png"), "target: expected a readable picture"),
        (row(mask="no.png"), "mask: expected a readable picture"),
        (row(images=[3]), r"images\[0\]: expected a picture path, found 3"),
        (row(images="0.png"), 'images: expected a list of picture paths, found "0.png"'),
        (row(text="<image> and <image>"), "expected one <image> mark per picture, found 2 marks and 1 pictures"),
        (row(text="a fox"), "expected one <image> mark per picture, found 0 marks and 1 pictures"),
        (row(task="t2i", text=" ", images=[]), "expected a caption, found an empty text"),
        (row(text=None), "text: expected a caption, found null"),
        ({"task": "t2i", "text": "a fox"}, "expected the key 'target', found task, text"),
        ('{"task": ', "expected a JSON object, found Expecting value at column 10"),
        ("[1, 2]", r"expected a JSON object, found \[1, 2\]"),
    ],
)
def test_bad_rows_are_refused_with_their_line(folder: Path, bad: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl:2: " + message) as caught:
        read_jsonl(write(folder, row(), bad))
    assert "\n" not in str(caught.value)


def test_a_truncated_picture_is_refused_when_it_is_decoded(folder: Path) -> None:
    entry = read_jsonl(write(folder, row(target="cut.png")))[0]
    with pytest.raises(UserError, match=r"rows.jsonl:1: target: expected a readable picture, found .*cut.png"):
        entry.load()


def test_missing_and_empty_files(folder: Path) -> None:
    with pytest.raises(UserError, match=r"none.jsonl: expected a readable JSONL file, found no such file"):
        read_jsonl(folder / "none.jsonl")
    with pytest.raises(UserError, match="expected at least one row"):
        read_jsonl(write(folder, ""))


def test_each_pass_shows_every_row_once(folder: Path) -> None:
    path = write(folder, *(row(target=f"{k}.png") for k in range(5)))
    world = JsonlWorld(JsonlData(source="jsonl", train=str(path)))
    reds = [world.example("subject", "train", 0, i).target.getpixel((0, 0))[0] for i in range(15)]
    passes = [reds[:5], reds[5:10], reds[10:]]
    assert all(sorted(seen) == [0, 1, 2, 3, 4] for seen in passes)
    assert len({tuple(seen) for seen in passes}) > 1


def test_worlds_from_recipes(folder: Path) -> None:
    path = write(folder, row(), row(task="t2i", text="a fox", images=[]))
    data = JsonlData(source="jsonl", train=str(path))
    world = world_of(data)
    assert world.tasks == ("t2i", "subject")
    assert sorted(world.corpus()) == ["<image> this fox", "a fox"]
    assert MixtureDataset(Mixture(data=data, weights={"t2i": 1.0}), "train", 0, 3)[2].text == "a fox"
    with pytest.raises(UserError, match="expected a split of train, found 'val'"):
        world.example("t2i", "val", 0, 0)
    with pytest.raises(UserError, match=r"weights.editing: expected a task of the data, known: subject, t2i"):
        MixtureDataset(Mixture(data=data, weights={"editing": 1.0}), "train", 0, 3)
