"""Rows of any source -> tar shards. Pictures are copied as they are, not encoded again.

The same rows give the same bytes: members have neither times nor owners, and no order but that of the source. Reading
is by row number, so rows need not be shuffled here.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mentor_base.data.broken import BrokenRows
from mentor_base.data.rows import BrokenPicture, Row, read_bytes, read_header
from mentor_base.data.shards import ShardFile
from mentor_base.errors import UserError

ENDINGS = {"JPEG": "jpg"}  # every other format is its own ending: png, webp, ...


def write_shards(
    rows: Iterable[Row | UserError], out: Path, prefix: str, size: int, broken: BrokenRows, written: int = 0
) -> list[Path]:
    """``out/<prefix>-000000.tar`` and on, ``size`` rows each, with their indexes beside them.

    ``written`` rows are in whole shards there already, and not among ``rows``.

    Raises:
        UserError: the first row that cannot be used, or too many with broken pictures (those are left out).
    """
    shards: list[Path] = []
    samples = enumerate(_whole_rows(rows, broken), start=written)
    while (first := next(samples, None)) is not None:
        shard = out / f"{prefix}-{-(-written // size) + len(shards):06d}.tar"
        partial = out / f".{shard.name}.partial"  # renamed when whole
        with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
            for n, members in chain([first], islice(samples, size - 1)):
                for name, content in members.items():
                    _add(archive, f"{n:09d}.{name}", content)
        partial.rename(shard)
        shards.append(shard)
        ShardFile(shard)  # makes the index, and proves that what was written can be read
    return shards


def _whole_rows(rows: Iterable[Row | UserError], broken: BrokenRows) -> Iterator[dict[str, bytes]]:
    """Members of each row by the rest of their names."""
    for row in rows:
        broken.drawn += 1
        try:
            if isinstance(row, UserError):
                raise row
            yield _members(row)
        except BrokenPicture as error:
            broken.note(error)


def _members(row: Row) -> dict[str, bytes]:
    entry: dict[str, Any] = {"task": row.task, "text": row.text}
    if row.subject is not None:
        entry["subject"] = row.subject
    if row.meta:
        entry["meta"] = dict(row.meta)
    if row.codes is not None:
        entry["codes"] = row.codes._asdict()
    members = {"json": json.dumps(entry, ensure_ascii=False, default=str).encode()}
    for part, picture in row.pictures():
        form = read_header(picture, row.where, part)[1]
        name = part.replace("images[", "image").rstrip("]")
        members[f"{name}.{ENDINGS.get(form, form.lower())}"] = read_bytes(picture, row.where, part)
    return members


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
