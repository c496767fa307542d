"""``source: jsonl``: one row a line, as rows.py has them; pictures are paths relative to the file.

    {"task": "subject", "text": "<image> this fox in line art style", "images": ["fox.png"], "target": "fox-line.png",
     "subject": "fox", "mask": null, "meta": {"style": "line art"}}

A file of prompts (``source: prompts``) has the same rows without the answer: no target, mask or codes. A ``.txt`` file
has one caption of a text-to-image prompt a line.

In memory a file is two numbers a row: the offset of its line and its line number.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mentor_base.data.rows import (
    CODED_KEYS,
    PROMPT_KEYS,
    FilePicture,
    Row,
    check_facts,
    check_keys,
    os_reason,
    parse_object,
    shown,
)
from mentor_base.data.schema import TASKS
from mentor_base.errors import UserError

TEXT_SUFFIX = ".txt"


class JsonlFile:
    """A RowFile over lines; ``answered``: of rows with a target, else of prompts. Empty lines are allowed.

    Raises:
        UserError: the first line that cannot be used, as ``file.jsonl:12: images[0]: expected ..., found ...``.
    """

    def __init__(self, path: Path, answered: bool = True) -> None:
        self.path = path
        self._parse = _parser(path, answered)
        self.tasks = array("B")
        self._offsets, self._numbers = array("q"), array("q")
        for number, offset, line in _lines(path):
            row = self._parse(line, f"{path}:{number}", path.parent)
            self.tasks.append(TASKS.index(row.task))
            self._offsets.append(offset)
            self._numbers.append(number)
        if not self.tasks:
            raise UserError(f"{path}: expected at least one row, found an empty file")

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, n: int) -> Row:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offsets[n])
                line = file.readline()
        except OSError as error:
            raise UserError(f"{self.path}: cannot read this file now: {os_reason(error)}") from error
        return self._parse(line, f"{self.path}:{self._numbers[n]}", self.path.parent)

    def texts(self) -> Iterator[str]:
        for number, _, line in _lines(self.path):
            yield self._parse(line, f"{self.path}:{number}", self.path.parent).text


def scan_jsonl(path: Path, answered: bool = True) -> Iterator[Row | UserError]:
    """Every row in order, and in place of a row that cannot be used its error; ``answered`` as in JsonlFile."""
    parse = _parser(path, answered)
    for number, _, line in _lines(path):
        try:
            yield parse(line, f"{path}:{number}", path.parent)
        except UserError as error:
            yield error


def count_jsonl(path: Path) -> int:
    """The number of lines that are not empty."""
    return sum(1 for _ in _lines(path))


def parse_line(line: bytes, where: str, folder: Path) -> Row:
    """The row of one line; paths are joined to ``folder``."""
    entry = parse_object(line.rstrip(b"\r\n"), where)  # so that columns count from the line
    check_keys(entry, where, CODED_KEYS)
    images = _pictures(entry, where, folder)
    facts = check_facts(entry, where, len(images))
    mask = entry.get("mask")
    return facts.row(
        where,
        images,
        target=_picture(entry["target"], f"{where}: target", folder),
        mask=None if mask is None else _picture(mask, f"{where}: mask", folder),
    )


def parse_prompt(line: bytes, where: str, folder: Path) -> Row:
    """The prompt of one line; paths are joined to ``folder``."""
    entry = parse_object(line.rstrip(b"\r\n"), where)
    check_keys(entry, where, PROMPT_KEYS)
    images = _pictures(entry, where, folder)
    return check_facts(entry, where, len(images)).row(where, images, target=None, mask=None)


def parse_caption(line: bytes, where: str, folder: Path) -> Row:
    """The text-to-image prompt that a line of a ``.txt`` file is."""
    try:
        text = line.decode("utf-8-sig").strip()  # Windows' editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: expected a caption in UTF-8, found other bytes") from error
    return check_facts({"task": "t2i", "text": text}, where, images=0).row(where, (), target=None, mask=None)


def _parser(path: Path, answered: bool) -> Callable[[bytes, str, Path], Row]:
    if answered:
        return parse_line
    return parse_caption if path.suffix == TEXT_SUFFIX else parse_prompt


def _pictures(entry: dict[str, Any], where: str, folder: Path) -> tuple[FilePicture, ...]:
    images = entry.get("images", [])
    if not isinstance(images, list):
        raise UserError(f"{where}: images: expected a list of picture paths, found {shown(images)}")
    return tuple(_picture(name, f"{where}: images[{k}]", folder) for k, name in enumerate(images))


def _picture(name: Any, where: str, folder: Path) -> FilePicture:
    if not isinstance(name, str):
        raise UserError(f"{where}: expected a picture path, found {shown(name)}")
    return FilePicture(folder / name)


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, offset in bytes, line) of every line that is not empty."""
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, offset, line
                offset += len(line)
    except OSError as error:
        raise UserError(f"{path}: expected a readable JSONL file, found {os_reason(error)}") from error
