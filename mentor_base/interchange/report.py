"""What an import did: every tensor is mapped, left out or freshly initialised, and the report says which."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mentor_base.interchange.weight_files import Pieces

FILE = "import.json"


def told(path: Path) -> str:
    """A source by its last two names: a checkpoint that is passed on names no folder of the machine that made it."""
    return "/".join(path.parts[-2:]) if not path.is_absolute() else "/".join(path.parts[1:][-2:])


@dataclass
class Part:
    """One part of the model: counts of tensors and parameters, and of parameters by their dtype in the source."""

    name: str
    source: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]

    @classmethod
    def of(cls, name: str, source: str, tensors: Mapping[str, Pieces]) -> Part:
        dtypes: dict[str, int] = {}
        for pieces in tensors.values():
            for piece in pieces:
                kind = str(piece.dtype).removeprefix("torch.")
                dtypes[kind] = dtypes.get(kind, 0) + piece.numel()
        return cls(name, source, len(tensors), sum(dtypes.values()), dtypes)


@dataclass
class ImportReport:
    """The record of one import, kept beside the weights as import.json.

    Attributes:
        parts: what was mapped, and from where.
        left_out: what the sources hold and the model does not: "file: name".
        fresh: tensors, or rows of one, that no source holds: name -> how they were initialised.
        choices: everything that the weights do not say -> value and where it came from.
    """

    source: str
    layout: str
    parts: list[Part] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    fresh: dict[str, str] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")
