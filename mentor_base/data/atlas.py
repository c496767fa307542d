"""The committed atlas of the emoji world: 64-pixel sprites of common things, each drawn in up to nine free styles.

Two package files, made by tools/build_atlas.py: ``sprites.bin`` holds one PNG or WebP file after the other,
``index.json.gz`` says what each one shows. Licences and credits of the drawings: DATA_LICENSES.md.

Splits. Subjects of one *family* (cat, black cat, cat face) are in one split: train, val or unseen_subjects. Some
(subject, style) pairs of train subjects are held out as unseen_pairs; the three fluent styles share their drawings and
are held out together, so the same drawing is never on both sides.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from mentor_base.errors import UserError, nearest
from mentor_base.settings import Split

SIZE = 64
FORMAT = "mentor emoji atlas 1"
FOLDER = files("mentor_base.data") / "emoji_atlas"


@dataclass(frozen=True)
class Subject:
    """One thing of the world.

    Attributes:
        id: Unicode code points in lower-case hexadecimal, joined by "-", without variation selectors.
        name: lower-case English name, as prompts use it.
        group: smileys, people, animals, food, travel, activities or objects.
        keywords: a few further words for it, best first.
        family: near-duplicates share it, and are in one split.
        split: train, val or unseen_subjects.
    """

    id: str
    name: str
    group: str
    keywords: tuple[str, ...]
    family: str
    split: Split


class Atlas:
    """Sprites and what they show. ``Atlas.load()`` is cached; sprites are decoded when first asked for, then kept.

    Attributes:
        styles: ids of the styles, in the order of the index.
        style_names: style id -> the descriptive words that prompts use.
        subjects: subject id -> Subject, in Unicode's order.
        held_out: the (subject, style) pairs of the split unseen_pairs.
    """

    def __init__(self, index: dict[str, Any], sprites: bytes) -> None:
        if index.get("format") != FORMAT:
            raise UserError(f"emoji atlas: expected format '{FORMAT}', found '{index.get('format')}'")
        if len(sprites) != index["bytes"]:
            raise UserError(f"emoji atlas: expected {index['bytes']} bytes of sprites, found {len(sprites)}")
        self.styles: tuple[str, ...] = tuple(index["styles"])
        self.style_names: dict[str, str] = {style: facts["name"] for style, facts in index["styles"].items()}
        self.subjects: dict[str, Subject] = {
            key: Subject(key, row["name"], row["group"], tuple(row["keywords"]), row["family"], row["split"])
            for key, row in index["subjects"].items()
        }
        self.held_out: frozenset[tuple[str, str]] = frozenset((subject, style) for subject, style in index["held_out"])
        self._where: dict[tuple[str, str], tuple[int, int]] = {
            (subject, style): (offset, size)
            for style, row in index["sprites"].items()
            for subject, (offset, size) in row.items()
        }
        self._sprites = sprites
        self._decoded: dict[tuple[str, str], np.ndarray] = {}

    @classmethod
    def load(cls) -> Atlas:
        """The committed atlas; the same object every time."""
        return _committed()

    def __len__(self) -> int:
        return len(self._where)

    def has(self, subject: str, style: str) -> bool:
        """Whether this subject is drawn in this style."""
        return (subject, style) in self._where

    def pixels(self, subject: str, style: str) -> np.ndarray:
        """The sprite as uint8 [64, 64, 4], straight alpha; shared, hence read-only."""
        key = (subject, style)
        array = self._decoded.get(key)
        if array is None:
            with Image.open(io.BytesIO(self.stored(subject, style))) as image:
                array = np.asarray(image.convert("RGBA"))
            array.setflags(write=False)
            self._decoded[key] = array
        return array

    def stored(self, subject: str, style: str) -> bytes:
        """The sprite as it is stored: a WebP or PNG file; equal pictures have equal files."""
        offset, size = self._find(subject, style)
        return self._sprites[offset : offset + size]

    def sprite(self, subject: str, style: str) -> Image.Image:
        """The sprite as a PIL RGBA picture of 64x64, straight alpha."""
        return Image.fromarray(self.pixels(subject, style))

    def pairs(self, split: Split, styles: Sequence[str] | None = None) -> tuple[tuple[str, str], ...]:
        """All (subject, style) of a split, sorted. ``train`` is without held-out subjects and pairs."""
        wanted = set(self.styles if styles is None else styles)
        for style in sorted(wanted - set(self.styles)):
            raise UserError(f"unknown style '{style}'; {nearest(style, self.styles)}")
        if split == "unseen_pairs":
            return tuple(sorted(pair for pair in self.held_out if pair[1] in wanted))
        return tuple(
            sorted(
                (subject, style)
                for subject, style in self._where
                if style in wanted and self.subjects[subject].split == split and (subject, style) not in self.held_out
            )
        )

    def _find(self, subject: str, style: str) -> tuple[int, int]:
        where = self._where.get((subject, style))
        if where is not None:
            return where
        if style not in self.style_names:
            raise UserError(f"unknown style '{style}'; {nearest(style, self.styles)}")
        if subject not in self.subjects:
            raise UserError(f"unknown subject id '{subject}'; {nearest(subject, self.subjects)}")
        drawn = ", ".join(known for known in self.styles if self.has(subject, known))
        raise UserError(f"'{self.subjects[subject].name}' is not drawn in style '{style}'; drawn in: {drawn}")


@cache
def _committed() -> Atlas:
    index = json.loads(gzip.decompress((FOLDER / "index.json.gz").read_bytes()))
    return Atlas(index, (FOLDER / "sprites.bin").read_bytes())
