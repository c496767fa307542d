"""Finished parts of a benchmark on disk: scores, and a few pictures, of one (policy, split, seed, scale)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mentor_base.runlog import write_atomically


@dataclass(frozen=True)
class Cell:
    """Columns of scores, one entry per item, and the first items' pictures (squares of one size)."""

    columns: dict[str, np.ndarray]
    pictures: tuple[Image.Image, ...]


class CellStore:
    """A folder of cells. ``identity`` tells checkpoints apart: cells made with other weights are not found."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether the cell of this key is finished; reads nothing."""
        return self._file(key).exists()

    def get(self, key: Mapping[str, Any]) -> Cell | None:
        """The finished cell of this key, or None."""
        file = self._file(key)
        if not file.exists():
            return None
        facts = json.loads(file.read_text(encoding="utf-8"))
        columns = {name: np.array(values, dtype=np.float64) for name, values in facts["columns"].items()}
        return Cell(columns, _cut(file.with_suffix(".png"), facts["pictures"]))

    def put(self, key: Mapping[str, Any], cell: Cell) -> None:
        """Pictures first, scores last: a cell exists once its scores do."""
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        if cell.pictures:
            _strip(cell.pictures, file.with_suffix(".png"))
        columns = {name: [float(value) for value in values] for name, values in cell.columns.items()}
        facts = {"key": dict(key), "columns": columns, "pictures": len(cell.pictures)}
        write_atomically(file, json.dumps(facts) + "\n")

    def _file(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps([self.identity, dict(sorted(key.items()))], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def _strip(pictures: tuple[Image.Image, ...], file: Path) -> None:
    side = pictures[0].width
    strip = Image.new("RGB", (side * len(pictures), side))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (i * side, 0))
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    strip.save(temporary, format="PNG")
    temporary.replace(file)


def _cut(file: Path, count: int) -> tuple[Image.Image, ...]:
    if not count:
        return ()
    with Image.open(file) as strip:
        whole = strip.convert("RGB")
    side = whole.height
    return tuple(whole.crop((i * side, 0, (i + 1) * side, side)) for i in range(count))
