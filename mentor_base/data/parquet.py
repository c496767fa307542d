"""``source: parquet``: tables whose columns are the keys of a row (rows.py).

    task, text, subject    strings
    images                 list of pictures; null and no column are no picture
    target, mask           a picture: the struct {bytes, path} of `datasets`' Image, the bytes, or a path
    meta                   struct (nulls in it are left out) or a JSON object as a string

Paths are relative to the file. Rows of a Parquet file are packed by the thousand, so that one of them alone cannot be
read; `datasets` unpacks a file once, into a memory-mapped copy in its cache, from which any row is one read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from glob import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from datasets.exceptions import DatasetGenerationError

from mentor_base.data.rows import (
    KEYS,
    BytesPicture,
    Facts,
    FilePicture,
    Picture,
    Row,
    check_facts,
    check_keys,
    parse_object,
)
from mentor_base.data.schema import TASKS
from mentor_base.errors import UserError

BATCH = 1024
PICTURES = ("images", "target", "mask")


class ParquetFile:
    """A RowFile over one table.

    Raises:
        UserError: a file that is no Parquet, a column of another name or type, or the first row that cannot be used.
    """

    def __init__(self, path: Path, cache: str | None = None) -> None:
        self.path = path
        if not count_parquet(path):
            raise UserError(f"{path}: expected at least one row, found an empty table")
        self._table = _open_table(path, cache)
        self.tasks = array("B")
        for checked in _checked(self._table, path):
            if isinstance(checked, UserError):
                raise checked
            self.tasks.append(TASKS.index(checked.task))

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, n: int) -> Row:
        return _row(self._table[n].to_pylist()[0], self.path, n)

    def texts(self) -> Iterator[str]:
        for batch in self._table.select_columns(["text"]).iter(BATCH):
            yield from batch.column("text").to_pylist()


def scan_parquet(path: Path, cache: str | None = None) -> Iterator[Row | UserError]:
    """Every row in order, and in place of a row that cannot be used its error."""
    if not count_parquet(path):  # `datasets` copies no empty table
        return
    table = _open_table(path, cache)
    for n, checked in enumerate(_checked(table, path)):
        try:
            yield checked if isinstance(checked, UserError) else _row(table[n].to_pylist()[0], path, n)
        except UserError as error:
            yield error


def count_parquet(path: Path) -> int:
    """The number of rows."""
    return int(_footer(path).num_rows)


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a readable Parquet file, found no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: expected a readable Parquet file, found {' '.join(str(error).split())}") from error


def _open_table(path: Path, cache: str | None) -> Dataset:
    """The memory-mapped copy; columns are checked before it is made."""
    schema = _footer(path).schema.to_arrow_schema()
    check_keys(dict.fromkeys(schema.names), str(path))
    for field in schema:
        _check_column(field, str(path))
    shown_before = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        dataset = Dataset.from_parquet(escape(str(path)), cache_dir=cache, keep_in_memory=False)
    except DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{path}: expected a readable Parquet file, found {reason}") from error
    finally:
        if shown_before:
            enable_progress_bars()
    return dataset.with_format("arrow")


def _check_column(field: pa.Field, where: str) -> None:
    kind = field.type
    if field.name == "images":
        fits, words = _is_list(kind) and _is_picture(kind.value_type), "a list of pictures"
    elif field.name in PICTURES:
        fits, words = _is_picture(kind), "pictures (struct of bytes and path, bytes, or paths)"
    elif field.name == "meta":
        fits, words = pa.types.is_struct(kind) or _is_string(kind), "a struct or JSON"
    else:
        fits, words = _is_string(kind), "strings"
    if not fits and not pa.types.is_null(kind):
        raise UserError(f"{where}: column {field.name}: expected {words}, found {kind}")


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = {field.name: field.type for field in kind}
        return set(names) <= {"bytes", "path"} and _is_bytes(names.get("bytes", pa.binary()))
    return _is_string(kind) or _is_bytes(kind)


def _checked(table: Dataset, path: Path) -> Iterator[Facts | UserError]:
    """The facts of each row, read without its pictures, or its error."""
    names = [name for name in KEYS if name in table.column_names and name not in ("target", "mask")]
    start = 0
    for batch in table.select_columns(names).iter(BATCH):
        counts = _lengths(batch.column("images")) if "images" in names else [0] * len(batch)
        facts = batch.select([name for name in names if name != "images"]).to_pylist()
        for n, (entry, count) in enumerate(zip(facts, counts, strict=True), start=start):
            try:
                yield _facts(entry, f"{path}:{n}", count)
            except UserError as error:
                yield error
        start += len(facts)


def _lengths(column: pa.ChunkedArray) -> list[int]:
    """The length of each list, without what is in it."""
    if pa.types.is_null(column.type):
        return [0] * len(column)
    return [length or 0 for length in pc.list_value_length(column).to_pylist()]


def _facts(entry: Mapping[str, Any], where: str, images: int) -> Facts:
    meta = entry.get("meta")
    if isinstance(meta, str):
        meta = parse_object(meta, f"{where}: meta")
    meta = {key: value for key, value in (meta or {}).items() if value is not None}
    return check_facts({**entry, "meta": meta}, where, images)


def _row(entry: Mapping[str, Any], path: Path, n: int) -> Row:
    where = f"{path}:{n}"
    images = entry.get("images") or []
    facts = _facts(entry, where, len(images))
    mask = entry.get("mask")
    return facts.row(
        where,
        images=tuple(_picture(cell, where, f"images[{k}]", path.parent) for k, cell in enumerate(images)),
        target=_picture(entry["target"], where, "target", path.parent),
        mask=None if mask is None else _picture(mask, where, "mask", path.parent),
    )


def _picture(cell: Any, where: str, part: str, folder: Path) -> Picture:
    """The picture of a cell. An empty cell is a picture that is broken: the table's other rows can be used."""
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, cell)
    if isinstance(data, bytes):
        return BytesPicture(f"{where}: {part}", data)
    if isinstance(path, str):
        return FilePicture(folder / path)
    return BytesPicture("an empty cell", b"")
