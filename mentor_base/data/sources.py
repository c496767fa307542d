"""Rows on disk: JSONL, one Example per line, picture paths relative to the file.

    {"task": "subject", "text": "<image> this fox in line art style", "images": ["fox.png"], "target": "fox-line.png",
     "subject": "fox", "mask": null, "meta": {"style": "line art"}}

``task``, ``text`` and ``target`` are required. All lines are checked when the file is opened (keys, types, caption,
``<image>`` marks, and that each picture exists and has a readable header); pixels are decoded when a row is drawn.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, UnidentifiedImageError

from mentor_base.data.schema import TASKS, Example, check_text
from mentor_base.errors import UserError, nearest
from mentor_base.images import over_white
from mentor_base.settings import JsonlData

_REQUIRED = ("task", "text", "target")
_TYPES: dict[str, tuple[type, str]] = {
    "task": (str, "a task name"),
    "text": (str, "a caption"),
    "images": (list, "a list of picture paths"),
    "target": (str, "a picture path"),
    "subject": (str, "a name or null"),
    "mask": (str, "a picture path or null"),
    "meta": (dict, "an object"),
}
_NULLABLE = ("subject", "mask")


@dataclass(frozen=True)
class Row:
    """A checked line: everything of an Example but the pixels. Paths are joined to the file's folder."""

    where: str
    task: str
    text: str
    images: tuple[Path, ...]
    target: Path
    subject: str | None
    mask: Path | None
    meta: dict[str, Any]

    def load(self) -> Example:
        """Decode the pictures."""
        images = tuple(_decode(path, f"{self.where}: images[{k}]") for k, path in enumerate(self.images))
        target = _decode(self.target, f"{self.where}: target")
        mask = None if self.mask is None else _decode(self.mask, f"{self.where}: mask", mode="L")
        if mask is not None and mask.size != target.size:
            raise UserError(f"{self.where}: mask: expected the size of the target {target.size}, found {mask.size}")
        return Example(self.task, self.text, images, target, self.subject, mask, {**self.meta, "where": self.where})


def read_jsonl(path: Path) -> list[Row]:
    """All rows of a file, checked. Empty lines are allowed.

    Raises:
        UserError: the first line that cannot be used, as ``file.jsonl:12: images[0]: expected ..., found ...``.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a readable JSONL file, found {_reason(error)}") from error
    rows = [_row(line, f"{path}:{n}", path.parent) for n, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UserError(f"{path}: expected at least one row, found an empty file")
    return rows


def _row(line: str, where: str, folder: Path) -> Row:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: expected a JSON object, found {error.msg} at column {error.colno}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a JSON object, found {_shown(entry)}")
    _check_keys(entry, where)
    if entry["task"] not in TASKS:
        raise UserError(f"{where}: unknown task '{entry['task']}'; {nearest(entry['task'], TASKS)}")
    images = entry.get("images", [])
    for k, name in enumerate(images):
        if not isinstance(name, str):
            raise UserError(f"{where}: images[{k}]: expected a picture path, found {_shown(name)}")
    check_text(entry["text"], len(images), where)
    if not entry["text"].strip():
        raise UserError(f"{where}: expected a caption, found an empty text")
    mask = entry.get("mask")
    row = Row(
        where=where,
        task=entry["task"],
        text=entry["text"],
        images=tuple(folder / name for name in images),
        target=folder / entry["target"],
        subject=entry.get("subject"),
        mask=None if mask is None else folder / mask,
        meta=entry.get("meta", {}),
    )
    _check_pictures(row)
    return row


def _check_keys(entry: dict[str, Any], where: str) -> None:
    for key in entry:
        if key not in _TYPES:
            raise UserError(f"{where}: unknown key '{key}'; {nearest(key, _TYPES)}")
    for key in _REQUIRED:
        if key not in entry:
            raise UserError(f"{where}: expected the key '{key}', found {', '.join(entry) or 'no key'}")
    for key, value in entry.items():
        kind, words = _TYPES[key]
        if not isinstance(value, kind) and not (value is None and key in _NULLABLE):
            raise UserError(f"{where}: {key}: expected {words}, found {_shown(value)}")


def _check_pictures(row: Row) -> None:
    named = [(f"images[{k}]", path) for k, path in enumerate(row.images)] + [("target", row.target)]
    if row.mask is not None:
        named.append(("mask", row.mask))
    for key, path in named:
        with _opened(path, f"{row.where}: {key}"):
            pass  # the header is read, pixels are not


def _opened(path: Path, where: str) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise UserError(f"{where}: expected a readable picture, found {path} of another kind") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: expected a readable picture, found {path}: {_reason(error)}") from error


def _decode(path: Path, where: str, mode: str = "RGB") -> Image.Image:
    with _opened(path, where) as image:
        try:
            image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{where}: expected a readable picture, found {path}: {_reason(error)}") from error
        return over_white(image) if mode == "RGB" else image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


class JsonlWorld:
    """A world of rows on disk; ``train`` and ``val`` are the splits it can have.

    Raises:
        UserError: see read_jsonl.
    """

    def __init__(self, settings: JsonlData) -> None:
        files = {"train": settings.train} | ({"val": settings.val} if settings.val is not None else {})
        self.rows: dict[str, dict[str, list[Row]]] = {}
        for split, name in files.items():
            by_task: dict[str, list[Row]] = defaultdict(list)
            for row in read_jsonl(Path(name)):
                by_task[row.task].append(row)
            self.rows[split] = dict(by_task)
        self.tasks: tuple[str, ...] = tuple(task for task in TASKS if task in self.rows["train"])

    def example(self, task: str, split: str, seed: int, index: int) -> Example:
        """A row of this task. Indices walk through all rows in an order that each pass shuffles anew.

        Raises:
            UserError: a split or task that the files do not have, or a picture that cannot be decoded.
        """
        if split not in self.rows:
            raise UserError(f"data: expected a split of {', '.join(self.rows)}, found '{split}'")
        rows = self.rows[split].get(task)
        if rows is None:
            raise UserError(f"data: no row of task '{task}' in split '{split}'; {nearest(task, self.rows[split])}")
        turn, place = divmod(index, len(rows))
        return rows[_order(len(rows), f"{task}/{split}/{seed}/{turn}")[place]].load()

    def corpus(self) -> list[str]:
        """All texts of the train rows."""
        return [row.text for rows in self.rows["train"].values() for row in rows]


@lru_cache(maxsize=32)
def _order(length: int, key: str) -> tuple[int, ...]:
    order = list(range(length))
    Random(key).shuffle(order)
    return tuple(order)
