"""Parquet: any row by number, every way to hold a picture, strict columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_files import red, save_pictures

from mentor_base.data.mixture import world_of
from mentor_base.data.parquet import ParquetFile, scan_parquet
from mentor_base.data.rows import BrokenPicture
from mentor_base.errors import UserError
from mentor_base.settings import ParquetData


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pictures(tmp_path)
    return tmp_path


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def opened(path: Path) -> ParquetFile:
    return ParquetFile(path, str(path.parent / "cache"))


def row(folder: Path, value: int = 1, kind: str = "struct", **changes: Any) -> dict[str, Any]:
    def cell(name: str) -> Any:
        data = (folder / name).read_bytes()
        return {"struct": {"bytes": data, "path": None}, "bytes": data, "path": name}[kind]

    return {
        "task": "subject",
        "text": "<image> this fox",
        "images": [cell("0.png")],
        "target": cell(f"{value}.png"),
        "subject": None,
        **changes,
    }


@pytest.mark.parametrize("kind", ["struct", "bytes", "path"])
def test_rows_by_number(folder: Path, kind: str) -> None:
    rows = [row(folder, k, kind, meta={"style": "flat" if k % 2 else None, "count": k}) for k in range(5)]
    rows.append(row(folder, 1, kind, task="t2i", text="a fox", images=[], subject="fox"))
    table = opened(write(folder, rows))
    assert [red(table[n].load().target) for n in (3, 0, 4)] == [3, 0, 4]
    assert dict(table[3].meta) == {"style": "flat", "count": 3}
    assert dict(table[4].meta) == {"count": 4}
    last = table[5]
    assert (last.task, last.images, last.subject, last.mask) == ("t2i", (), "fox", None)
    assert last.where == f"{table.path}:5"
    assert list(table.texts())[4:] == ["<image> this fox", "a fox"]


def test_meta_as_json_and_masks(folder: Path) -> None:
    mask = {"bytes": None, "path": "mask.png"}
    example = opened(write(folder, [row(folder, meta='{"count": 3}', mask=mask)]))[0].load()
    assert example.meta["count"] == 3
    assert example.mask is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "subjct"}, r"rows.parquet:1: unknown task 'subjct'; did you mean 'subject'"),
        ({"text": "a fox"}, r"rows.parquet:1: expected one <image> mark per picture, found 0 marks and 1"),
        ({"text": None}, r"rows.parquet:1: text: expected a caption, found null"),
        ({"images": None}, r"rows.parquet:1: expected one <image> mark per picture, found 1 marks and 0"),
        ({"meta": "[1]"}, r"rows.parquet:1: meta: expected a JSON object, found \[1\]"),
    ],
)
def test_bad_rows_are_refused_by_number(folder: Path, changes: dict[str, Any], message: str) -> None:
    path = write(folder, [row(folder, meta="{}"), row(folder, **{"meta": "{}", **changes})])
    with pytest.raises(UserError, match=message):
        opened(path)
    found = list(scan_parquet(path, str(folder / "cache")))
    assert [isinstance(each, UserError) for each in found] == [False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tsk": "t2i"}, "rows.parquet: unknown key 'tsk'; did you mean 'task'"),
        ({"task": 3}, "rows.parquet: column task: expected strings, found int64"),
        ({"images": "0.png"}, "rows.parquet: column images: expected a list of pictures, found string"),
        ({"target": {"data": b""}}, "rows.parquet: column target: expected pictures .struct of bytes and path"),
    ],
)
def test_bad_columns_are_refused_by_name(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(write(folder, [row(folder, **changes)]))


def test_files_that_are_none(folder: Path) -> None:
    with pytest.raises(UserError, match=r"text.png: expected a readable Parquet file, found Parquet magic bytes"):
        opened(folder / "text.png")
    with pytest.raises(UserError, match="expected a readable Parquet file, found no such file"):
        opened(folder / "no.parquet")
    table = row(folder)
    del table["target"]
    with pytest.raises(UserError, match=r"rows.parquet: expected the key 'target', found task, text, images, subject"):
        opened(write(folder, [table]))


def test_damaged_pages_and_no_rows_are_one_line(folder: Path) -> None:
    path = write(folder, [row(folder, meta="{}")] * 4)
    data = bytearray(path.read_bytes())
    data[40:200] = bytes(160)
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"rows.parquet: expected a readable Parquet file, found ") as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    pq.write_table(pq.read_table(write(folder, [row(folder)])).slice(0, 0), path)
    with pytest.raises(UserError, match=r"rows.parquet: expected at least one row, found an empty table"):
        opened(path)
    assert list(scan_parquet(path)) == []


def test_a_name_is_no_pattern(folder: Path) -> None:
    path = write(folder, [row(folder)]).rename(folder / "rows [1] ü.parquet")
    assert red(opened(path)[0].load().target) == 1


def test_a_world_with_broken_and_empty_cells(folder: Path) -> None:
    rows = [row(folder, 1), row(folder, 2), row(folder, target={"bytes": b"x", "path": None}), row(folder, target=None)]
    path = write(folder, rows)
    data = ParquetData(train=str(path), cache=str(folder / "cache"), broken_rate=1)
    world = world_of(data, folder / "broken.jsonl")
    assert {red(world.example("subject", "train", 0, i).target) for i in range(8)} == {1, 2}
    assert len((folder / "broken.jsonl").read_text().splitlines()) == 2
    with pytest.raises(BrokenPicture, match=r"rows.parquet:3: target: .* found an empty cell"):
        opened(path)[3].load()
