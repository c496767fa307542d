"""Rows on disk: strict lines, lazy pixels, fixed orders, broken pictures skipped the same way for everyone."""

from __future__ import annotations

import errno
import io
import json
import logging
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image
from row_files import red, row, save_pictures, write_jsonl
from torch.utils.data import DataLoader

from mentor_base.data.broken import FEWEST, read_report
from mentor_base.data.jsonl import JsonlFile, scan_jsonl
from mentor_base.data.mixture import MixtureDataset, world_of
from mentor_base.data.order import shuffled
from mentor_base.data.rows import BrokenPicture, FilePicture
from mentor_base.data.schema import Example
from mentor_base.data.sources import RowWorld, data_of_path, files_of
from mentor_base.errors import UserError
from mentor_base.settings import JsonlData, Mixture, PromptData


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pictures(tmp_path)
    return tmp_path


def world(path: Path, report: Path | None = None, **settings: Any) -> RowWorld:
    return RowWorld(JsonlData(train=str(path), **settings), report)


def test_rows_become_examples(folder: Path) -> None:
    path = write_jsonl(
        folder,
        row(subject="fox", mask="mask.png", meta={"style": "flat"}),
        "",
        row(task="t2i", text="ein Fuchs, süß\u2028", images=[], target="clear.png", subject=None),
    )
    first, second = (entry.load() for entry in JsonlFile(path))
    assert (first.task, first.subject, first.meta["style"]) == ("subject", "fox", "flat")
    assert first.meta["where"] == f"{path}:1"
    assert first.mask is not None
    assert red(first.images[0]) == 0
    assert second.meta["where"] == f"{path}:3"
    assert second.target.getpixel((0, 0)) == (255, 255, 255), "alpha goes over white"


def test_files_as_other_systems_write_them(folder: Path) -> None:
    """A byte order mark, CRLF, no end of the last line; names beyond ASCII, absolute paths, links."""
    (folder / "4.png").rename(folder / "Füchsin 狐.png")
    (folder / "linked").symlink_to(folder, target_is_directory=True)
    rows = [row(target="Füchsin 狐.png"), row(target=str(folder / "1.png")), row(target="linked/2.png")]
    path = folder / "rows.jsonl"
    path.write_text("\ufeff" + "\r\n".join(json.dumps(each, ensure_ascii=False) for each in rows), encoding="utf-8")
    file = JsonlFile(path)
    assert [red(file[n].load().target) for n in (2, 0, 1)] == [2, 4, 1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(imgaes=[]), "unknown key 'imgaes'; did you mean 'images'"),
        (row(task="subjct"), "unknown task 'subjct'; did you mean 'subject'"),
        (row(images=[3]), r"images\[0\]: expected a picture path, found 3"),
        (row(images="0.png"), 'images: expected a list of picture paths, found "0.png"'),
        (row(target=None), "target: expected a picture path, found null"),
        (row(text="<image> and <image>"), "expected one <image> mark per picture, found 2 marks and 1 pictures"),
        (row(text="a fox"), "expected one <image> mark per picture, found 0 marks and 1 pictures"),
        (row(task="t2i", text=" ", images=[]), "expected a caption, found an empty text"),
        (row(text=None), "text: expected a caption, found null"),
        (row(text="<image> \ud83d"), r'text: expected Unicode, found half of a character in "<image> .ud83d"'),
        ({"task": "t2i", "text": "a fox"}, "expected the key 'target', found task, text"),
        ('{"task": ', "expected a JSON object, found Expecting value at column 10"),
        ("[1, 2]", r"expected a JSON object, found \[1, 2\]"),
    ],
)
def test_bad_rows_are_refused_with_their_line(folder: Path, bad: Any, message: str) -> None:
    path = write_jsonl(folder, row(), bad, row())
    with pytest.raises(UserError, match=r"rows\.jsonl:2: " + message) as caught:
        JsonlFile(path)
    assert "\n" not in str(caught.value)
    found = list(scan_jsonl(path))
    assert [isinstance(each, UserError) for each in found] == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ["no.png"]}, r"images\[0\]: expected a readable picture, found .*no.png: no such file"),
        ({"images": ["text.png"]}, r"images\[0\]: expected a readable picture, found .*text.png of another kind"),
        ({"images": ["."]}, r"images\[0\]: expected a readable picture, found .*: Is a directory"),
        ({"target": "cut.png"}, "target: expected a readable picture, found .*cut.png: "),
        ({"target": "a\0b.png"}, "target: expected a readable picture, found .*null"),
        ({"target": "float.tif"}, r"target: expected a readable picture, found .*float.tif: 32-bit pixels"),
        ({"mask": "no.png"}, "mask: expected a readable picture"),
        (
            {"mask": "noise.png"},
            r"mask: expected a readable picture, found \(64, 64\) pixels over a target of \(8, 8\)",
        ),
    ],
)
def test_broken_pictures_are_found_when_they_are_decoded(folder: Path, changes: Any, message: str) -> None:
    entry = JsonlFile(write_jsonl(folder, row(**changes)))[0]
    with pytest.raises(BrokenPicture, match=r"rows.jsonl:1: " + message):
        entry.load()


@pytest.mark.parametrize(
    ("picture", "name", "colour"),
    [
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "x.tif", (255, 0, 0)),
        (Image.fromarray(np.full((8, 8), 0x7F01, np.uint16)), "x.png", (127, 127, 127)),
        (Image.new("1", (8, 8)), "x.png", (0, 0, 0)),
        (Image.new("LA", (8, 8), (9, 0)), "x.png", (255, 255, 255)),
        (Image.new("RGB", (8, 8), (200, 10, 10)).quantize(4), "x.gif", (200, 10, 10)),
    ],
    ids=["four inks", "16 bits", "1 bit", "grey and alpha", "palette"],
)
def test_pictures_of_every_kind_are_rgb(folder: Path, picture: Image.Image, name: str, colour: Any) -> None:
    picture.save(folder / name)
    target = JsonlFile(write_jsonl(folder, row(target=name)))[0].load().target
    assert (target.mode, target.getpixel((4, 4))) == ("RGB", colour)


def test_of_a_film_the_first_picture_counts(folder: Path) -> None:
    frames = [Image.open(folder / f"{k}.png") for k in (3, 4)]
    frames[0].save(folder / "film.png", save_all=True, append_images=frames[1:])
    assert red(JsonlFile(write_jsonl(folder, row(target="film.png")))[0].load().target) == 3


class FailingFile(io.BytesIO):
    """Opens, and then the disk fails."""

    def read(self, *args: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("opens", [False, True])
def test_a_failing_disk_is_not_a_broken_picture(folder: Path, monkeypatch: pytest.MonkeyPatch, opens: bool) -> None:
    def fail(self: FilePicture) -> BinaryIO:
        if opens:
            return FailingFile()
        raise OSError(errno.EIO, "Input/output error", str(self.path))

    entry = JsonlFile(write_jsonl(folder, row()))[0]
    monkeypatch.setattr(FilePicture, "open", fail)
    for look in (entry.load, entry.sizes):
        with pytest.raises(UserError, match=r"cannot read .*0.png now: Input/output error") as caught:
            look()
        assert not isinstance(caught.value, BrokenPicture)


def test_rows_that_go_away_while_they_are_read(folder: Path) -> None:
    path = write_jsonl(folder, row())
    file = JsonlFile(path)
    path.unlink()
    with pytest.raises(UserError, match=r"rows.jsonl: cannot read this file now: no such file"):
        file[0]


def test_missing_and_empty_files(folder: Path) -> None:
    with pytest.raises(UserError, match=r"none.jsonl: expected a readable JSONL file, found no such file"):
        JsonlFile(folder / "none.jsonl")
    with pytest.raises(UserError, match="expected at least one row"):
        JsonlFile(write_jsonl(folder, ""))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 1000])
def test_orders_are_permutations_that_differ(length: int) -> None:
    orders = [[shuffled(k, length, f"t2i/train/0/{turn}") for k in range(length)] for turn in range(3)]
    assert all(sorted(order) == list(range(length)) for order in orders)
    if length > 5:
        assert orders[0] != orders[1] != orders[2]
    if length == 1000:  # no row stays near its place: the mean distance of a random order is a third
        assert 250 < sum(abs(n - k) for k, n in enumerate(orders[0])) / length < 420


def test_first_rows_of_passes_are_evenly_spread() -> None:
    counts = [0] * 5
    for turn in range(2000):
        counts[shuffled(0, 5, f"key/{turn}")] += 1
    assert all(330 < count < 470 for count in counts)


def test_each_pass_shows_every_row_once(folder: Path) -> None:
    rows = world(write_jsonl(folder, *(row(target=f"{k}.png") for k in range(5))))
    reds = [red(rows.example("subject", "train", 0, i).target) for i in range(15)]
    passes = [reds[:5], reds[5:10], reds[10:]]
    assert all(sorted(seen) == [0, 1, 2, 3, 4] for seen in passes)
    assert len({tuple(seen) for seen in passes}) > 1


def test_several_files_are_one_sequence(folder: Path) -> None:
    for k in range(4):
        write_jsonl(folder, row(target=f"{k}.png", text=f"<image> {k}"), name=f"part-{k}.jsonl")
    rows = RowWorld(JsonlData(train=(str(folder / "part-3.jsonl"), str(folder / "part-[0-2].jsonl"))))
    assert rows.corpus() == ["<image> 3", "<image> 0", "<image> 1", "<image> 2"]
    assert sorted(red(rows.example("subject", "train", 0, i).target) for i in range(4)) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="expected at least one file, found none that matches"):
        files_of(str(folder / "shard-*.jsonl"))


def broken_rows(folder: Path, good: int = 4, bad: int = 1) -> Path:
    rows = [row(target=f"{k}.png") for k in range(good)] + [row(target="cut.png")] * bad
    return write_jsonl(folder, *rows)


def draw_all(rows: RowWorld, count: int) -> None:
    for i in range(count):
        rows.example("subject", "train", 0, i)


def where(example: Example) -> str:
    return str(example.meta["where"]).rpartition(":")[2]


class Drawn(MixtureDataset):
    """Only the line numbers, so that a DataLoader can batch them."""

    def __getitem__(self, i: int) -> int:  # type: ignore[override]
        return int(where(super().__getitem__(i)))


def test_a_broken_picture_gives_way_to_the_next_row_of_its_pass(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, report = broken_rows(folder), folder / "broken.jsonl"
    rows = world(path, report, broken_rate=1)
    order = [shuffled(k, 5, "subject/train/7/0") for k in range(5)]
    at = order.index(4)  # the fifth row is broken
    with caplog.at_level(logging.WARNING):
        seen = [int(where(rows.example("subject", "train", 7, i))) - 1 for i in range(5)]
    expected = [order[(at + 1) % 5] if n == 4 else n for n in order]
    assert seen == expected
    for i in range(5, 15):
        rows.example("subject", "train", 7, i)
    assert (rows.broken.met, rows.broken.drawn) == (3, 18)
    assert [line["row"] for line in read_report(report)] == [f"{path}:5"]
    assert len(report.read_text().splitlines()) == 1, "named once, although it was met three times"
    assert len(caplog.records) == 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_and_resumed_runs_see_the_same_rows(folder: Path) -> None:
    data = JsonlData(train=str(broken_rows(folder, 4, 2)), broken_rate=1)
    drawn = Drawn(Mixture(data=data, weights={"subject": 1.0}), "train", 3, 24, RowWorld(data, folder / "broken.jsonl"))
    alone = [drawn[i] for i in range(24)]
    spread = [n for batch in DataLoader(drawn, batch_size=4, num_workers=2) for n in batch.tolist()]
    assert spread == alone
    assert [drawn[i] for i in range(13, 24)] == alone[13:]
    assert len(read_report(folder / "broken.jsonl")) == 2


def test_too_many_broken_pictures_stop_the_run(folder: Path) -> None:
    rows = world(broken_rows(folder, 2, 2), folder / "broken.jsonl")
    with pytest.raises(UserError, match=rf"expected at most 1.00% .* found {FEWEST} of \d+, named in .*broken.jsonl"):
        draw_all(rows, 1000)
    strict = world(broken_rows(folder), broken_rate=0)
    with pytest.raises(BrokenPicture, match=r"rows.jsonl:5: target"):
        draw_all(strict, 5)


def test_a_report_that_a_full_disk_cut_short_can_be_gone_on_with(folder: Path) -> None:
    report = folder / "broken.ndjson"
    line = '{"row": "a:%d", "picture": "target", "reason": "cut"}'
    report.write_text(f"{line % 1}\n{(line % 2)[:20]}{line % 3}\n{line % 4}\n{(line % 5)[:20]}")
    assert [each["row"] for each in read_report(report)] == ["a:1", "a:4"]


def test_a_wrong_folder_is_found_at_once(folder: Path) -> None:
    path = write_jsonl(folder, *[row(target="no/1.png")] * 20)
    with pytest.raises(
        UserError, match=r"none of 8 rows tried has readable pictures; the first: .*rows.jsonl:1: target"
    ):
        world(path)


def test_worlds_from_recipes(folder: Path) -> None:
    path = write_jsonl(folder, row(), row(task="t2i", text="a fox", images=[]))
    data = JsonlData(source="jsonl", train=str(path))
    rows = world_of(data)
    assert rows.tasks == ("t2i", "subject")
    assert sorted(rows.corpus()) == ["<image> this fox", "a fox"]
    assert MixtureDataset(Mixture(data=data, weights={"t2i": 1.0}), "train", 0, 3)[2].text == "a fox"
    with pytest.raises(UserError, match="expected a split of train, found 'val'"):
        rows.example("t2i", "val", 0, 0)
    with pytest.raises(UserError, match=r"weights.editing: expected a task of the data, known: subject, t2i"):
        MixtureDataset(Mixture(data=data, weights={"editing": 1.0}), "train", 0, 3)


def test_settings_by_path(folder: Path) -> None:
    path = write_jsonl(folder, row())
    assert data_of_path(str(path)) == JsonlData(train=str(path))
    assert data_of_path(str(folder)) == JsonlData(train=str(folder / "*.jsonl"))
    for name, message in (
        (str(folder / "0.png"), "expected a file, glob or folder of .jsonl, .tar, .parquet, found '.png'"),
        (str(folder / "no.tar"), "expected rows, found no such file"),
    ):
        with pytest.raises(UserError, match=message):
            data_of_path(name)
    (folder / "x.tar").write_bytes(json.dumps({}).encode())
    with pytest.raises(UserError, match=r"expected files of one kind .*, found .jsonl and .tar"):
        data_of_path(str(folder))


def test_prompts_need_no_answer(folder: Path) -> None:
    asked = [row(subject="fox", meta={"style": "flat"}), row(images=["3.png"])]
    path = write_jsonl(folder, *({k: v for k, v in r.items() if k != "target"} for r in asked), name="prompts.jsonl")
    captions = folder / "captions.txt"
    captions.write_text("\ufeffa fox\r\n\r\nein B\u00e4r", encoding="utf-8")
    prompts = world_of(PromptData(train=(str(path), str(captions))))
    assert prompts.tasks == ("t2i", "subject")
    found = [prompts.prompt("subject", "train", 0, i) for i in range(2)]
    assert {(red(prompt.images[0]), prompt.subject) for prompt in found} == {(0, "fox"), (3, None)}
    assert all(prompt.meta["task"] == "subject" for prompt in found)
    assert {prompts.prompt("t2i", "train", 0, i).text for i in range(2)} == {"a fox", "ein B\u00e4r"}
    with pytest.raises(UserError, match=r"captions\.txt:\d: expected a target, found a prompt without one"):
        prompts.example("t2i", "train", 0, 0)
    with pytest.raises(UserError, match=r"rows\.jsonl:1: unknown key 'target'; a prompt has no answer"):
        world_of(PromptData(train=str(write_jsonl(folder, row()))))


def test_a_broken_answer_does_not_matter_to_a_prompt(folder: Path) -> None:
    rows = world(write_jsonl(folder, row(target="cut.png"), row(images=["cut.png"], text="<image>")), broken_rate=1.0)
    assert [red(rows.prompt("subject", "train", 0, i).images[0]) for i in range(2)] == [0, 0]
