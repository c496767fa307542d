"""The listing of pictures to score: CSV, JSON lines or parquet, one picture a row; errors name the row's line.

Columns: ``file`` and, as the rewards need them, ``prompt``, ``references`` (paths), ``subject``, ``group`` and
``metadata``. In a CSV, and where a parquet has text: ``references`` are parted by ``;``, ``metadata`` is a JSON object
or stands in columns ``metadata.KEY``, and an empty cell is no value. Paths are relative to the folder of pictures.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mentor_rewards.contract import RewardBatch, RewardError, first_problem, nearest

PROMPTS = "prompts.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FACT = "metadata."


class PictureRow(BaseModel):
    """One picture, and what it was asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    prompt: str = ""
    references: tuple[str, ...] = ()
    subject: str | None = None
    group: int | str | None = Field(None, description="pictures of one prompt share it; default: the prompt itself")
    metadata: dict[str, Any] = {}


class Listing:
    """Rows to score, in order, and where each of them stands.

    Args:
        images: the folder of pictures.
        rows: of ``places``' length.
        places: "FILE:LINE" of each row, for errors.
    """

    def __init__(self, images: Path, rows: Sequence[PictureRow], places: Sequence[str]) -> None:
        self.images, self.rows, self.places = images, list(rows), list(places)
        groups: dict[int | str, int] = {}
        self.group_ids = [groups.setdefault(_group(row), len(groups)) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, wanted: range) -> RewardBatch:
        """These rows with their pictures, each file opened once."""
        opened: dict[str, Image.Image] = {}

        def picture(n: int, name: str) -> Image.Image:
            if name not in opened:
                opened[name] = _open(self.images / name, self.places[n])
            return opened[name]

        return self._columns(wanted, picture)

    def facts(self) -> RewardBatch:
        """All rows without their pictures (a blank one stands for each): what rewards need can be looked up in it."""
        blank = Image.new("RGB", (1, 1))
        return self._columns(range(len(self)), lambda n, name: blank)

    def check_files(self) -> None:
        """Refuse, before any work, a row whose picture is not there."""
        for row, place in zip(self.rows, self.places, strict=True):
            for name in (row.file, *row.references):
                if not (self.images / name).is_file():
                    raise RewardError(f"{place}: no such picture: {self.images / name}")

    def _columns(self, wanted: range, picture: Callable[[int, str], Image.Image]) -> RewardBatch:
        rows = [self.rows[n] for n in wanted]
        return RewardBatch(
            images=[picture(n, self.rows[n].file) for n in wanted],
            prompts=[row.prompt for row in rows],
            references=[tuple(picture(n, name) for name in self.rows[n].references) for n in wanted],
            subjects=[row.subject for row in rows],
            group_ids=[self.group_ids[n] for n in wanted],
            metadata=[row.metadata for row in rows],
        )


def read_listing(images: Path, prompts: Path | None = None) -> Listing:
    """The rows of a listing; default: the folder's prompts.jsonl, else every picture of the folder.

    Raises:
        RewardError: no folder, no pictures, an unreadable listing or row, a picture that is not there.
    """
    if not images.is_dir():
        raise RewardError(f"{images}: expected a folder of pictures")
    file = prompts or images / PROMPTS
    if prompts is None and not file.is_file():
        names = sorted(path.name for path in images.iterdir() if path.suffix.lower() in SUFFIXES)
        if not names:
            raise RewardError(f"{images}: expected pictures ({', '.join(SUFFIXES)}), found none")
        return Listing(images, [PictureRow(file=name) for name in names], [str(images)] * len(names))
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if file.suffix not in readers:
        raise RewardError(f"{file}: expected a file of {', '.join(readers)}; {nearest(file.suffix, readers)}")
    try:
        found = [(_row(cells, place), place) for place, cells in readers[file.suffix](file)]
    except OSError as error:
        raise RewardError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RewardError(f"{file}: expected text in UTF-8: {error.reason} at byte {error.start}") from error
    if not found:
        raise RewardError(f"{file}: expected one picture a row, found none")
    listing = Listing(images, *zip(*found, strict=True))
    listing.check_files()
    return listing


Cells = tuple[str, Mapping[str, Any]]  # FILE:LINE, and what stands there by column


def _jsonl(file: Path) -> Iterator[Cells]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except json.JSONDecodeError as error:
                raise RewardError(f"{file}:{number}: not JSON: {error}") from error
            if not isinstance(cells, dict):
                raise RewardError(f"{file}:{number}: expected a JSON object, found {type(cells).__name__}")
            yield f"{file}:{number}", cells


def _csv(file: Path) -> Iterator[Cells]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        header: list[str] | None = None
        try:
            for cells in reader:
                place = f"{file}:{reader.line_num}"
                if header is None:
                    header = cells
                    _check_header(header, place)
                elif len(cells) > len(header):
                    raise RewardError(f"{place}: expected {len(header)} cells, found {len(cells)}")
                elif any(cells):
                    yield place, _from_text(dict(zip(header, cells, strict=False)), place)
        except csv.Error as error:
            raise RewardError(f"{file}:{reader.line_num}: not CSV: {error}") from error


def _parquet(file: Path) -> Iterator[Cells]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowInvalid as error:
        raise RewardError(f"{file}: not a parquet file: {str(error).splitlines()[0]}") from error
    _check_header(table.column_names, f"{file}: columns")
    for number, cells in enumerate(table.to_pylist(), 1):
        place = f"{file}: row {number}"
        yield place, _from_text({key: value for key, value in cells.items() if value is not None}, place)


def _check_header(header: Sequence[str], place: str) -> None:
    for name in header:
        if name not in PictureRow.model_fields and not name.startswith(_FACT):
            raise RewardError(f"{place}: unknown column '{name}'; {nearest(name, [*PictureRow.model_fields, _FACT])}")
        if header.count(name) > 1:
            raise RewardError(f"{place}: column '{name}' stands there twice")


def _from_text(cells: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Text of a flat table as the nested values that a row has."""
    row: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for name, value in cells.items():
        if value == "":
            continue
        if name.startswith(_FACT):
            facts[name.removeprefix(_FACT)] = value
        elif name == "references" and isinstance(value, str):
            row[name] = [part.strip() for part in value.split(";") if part.strip()]
        elif name == "metadata" and isinstance(value, str):
            try:
                row[name] = json.loads(value)
            except json.JSONDecodeError as error:
                raise RewardError(f"{place}: metadata: not JSON: {error}") from error
        else:
            row[name] = value
    return {**row, "metadata": {**row.get("metadata", {}), **facts}} if facts else row


def _row(cells: Mapping[str, Any], place: str) -> PictureRow:
    try:
        return PictureRow.model_validate(cells)
    except ValidationError as error:
        raise RewardError(f"{place}: {first_problem(error, PictureRow)}") from error


def _group(row: PictureRow) -> int | str:
    if row.group is not None:
        return row.group
    return row.prompt or row.file


def _open(path: Path, place: str) -> Image.Image:
    from mentor_rewards.pixels import rgb

    try:
        with Image.open(path) as image:
            image.load()
            return rgb(image)
    except FileNotFoundError:
        raise RewardError(f"{place}: no such picture: {path}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "another kind of file" if isinstance(error, UnidentifiedImageError) else error
        raise RewardError(f"{place}: {path} is not a readable picture: {reason}") from error
