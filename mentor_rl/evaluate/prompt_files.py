"""Files of prompts: .txt (one a line), .csv and .jsonl (column or key ``prompt``), .json (a list of texts)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mentor_base.errors import UserError, nearest

COLUMN = "prompt"


def read_prompts(path: Path) -> list[str]:
    """All prompts of a file, in order.

    Raises:
        UserError: another kind of file, not readable as that kind, an empty prompt, or none at all.
    """
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
        ".txt": _lines,
        ".csv": _csv,
        ".jsonl": _jsonl,
        ".json": _json,
    }
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a prompt file of {', '.join(readers)}; {nearest(path.suffix, readers)}")
    prompts = []
    try:
        for line, text in readers[path.suffix](path):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{path}:{line}: expected a prompt, found {text!r}")
            prompts.append(" ".join(text.split()))
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise UserError(f"{path}: expected {path.suffix[1:]} in UTF-8: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: expected a prompt file: {error.strerror}") from error
    if not prompts:
        raise UserError(f"{path}: expected prompts, found none")
    return prompts


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            yield number, line


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        _check(list(reader.fieldnames or ()), f"{path}:1")
        for row in reader:
            yield reader.line_num, row[COLUMN]


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: expected a JSON object: {error.msg}") from error
        _check(list(row) if isinstance(row, dict) else [], f"{path}:{number}")
        yield number, row[COLUMN]


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    texts = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(texts, list):
        raise UserError(f"{path}: expected a list of texts, found a {type(texts).__name__}")
    yield from enumerate(texts, 1)


def _check(names: list[str], where: str) -> None:
    if COLUMN not in names:
        raise UserError(f"{where}: expected a column '{COLUMN}', found {', '.join(names) or 'none'}")
