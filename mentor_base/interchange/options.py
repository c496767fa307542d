"""What an import is told beside its source, and which kind of source takes or needs what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mentor_base.checkpoint import DTYPES
from mentor_base.errors import UserError, nearest
from mentor_base.interchange.names import LLAMAGEN, MENTOR, OURS, VQ16, Layout

Kind = Literal["llamagen", "mentor", "vq", "hf"]
LAYOUTS: dict[Kind, Layout] = {"llamagen": LLAMAGEN, "mentor": MENTOR, "vq": VQ16, "hf": OURS}
NEEDS: dict[Kind, tuple[str, ...]] = {
    "llamagen": ("vq", "text_encoder", "vision"),
    "mentor": ("vq", "tokenizer"),
    "vq": (),
    "hf": (),
}
TAKES: dict[Kind, tuple[str, ...]] = {
    "llamagen": ("size", "image_size", "prefix_rows", "keep_rows", "connector", "tokenizer", "options", "seed"),
    "mentor": ("size", "image_size", "prefix_rows", "keep_rows", "options", "seed"),
    "vq": ("image_size",),
    "hf": ("image_size", "prefix_rows", "keep_rows", "vq", "tokenizer", "seed"),
}


@dataclass(frozen=True)
class ImportOptions:
    """What the source does not say, or what shall be other than it says. None: as the source has it.

    Attributes:
        size: row of SIZES; recognised from the shapes when None.
        image_size: side of the drawn picture, pixels.
        prefix_rows, keep_rows: rows of the unconditional table, and whether the source's rows go to its "front" or its
            "tail" when their number differs.
        dtype: of all floats on disk.
        options: fields of MentorConfig, as ``policy.options`` of a recipe.
        vq: a VQ-16 file or one of our tokenizer folders.
        tokenizer: folder with the text tokenizer's tokenizer.json.
        text_encoder, vision: transformers folders of T5 and of CLIP (whole or its vision tower).
        connector: a file with LLaVA's names of the MLP projector.
        seed: of what is freshly initialised.
    """

    size: str | None = None
    image_size: int | None = None
    prefix_rows: int | None = None
    keep_rows: Literal["front", "tail"] | None = None
    dtype: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    vq: Path | None = None
    tokenizer: Path | None = None
    text_encoder: Path | None = None
    vision: Path | None = None
    connector: Path | None = None
    seed: int = 0

    def check(self, kind: Kind) -> None:
        """Refuse what ``kind`` does not take, and ask for what it needs."""
        allowed = {*TAKES[kind], *NEEDS[kind], "dtype"}
        for item in fields(self):
            given = getattr(self, item.name) not in (None, {}, item.default)
            flag = f"--{item.name.removesuffix('s') if item.name == 'options' else item.name}".replace("_", "-")
            if given and item.name not in allowed:
                raise UserError(f"{flag}: does not apply to --from {kind}")
        for name in NEEDS[kind]:
            if getattr(self, name) is None:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag}: expected a path, since a {LAYOUTS[kind].title} checkpoint does not hold it")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"--dtype: unknown '{self.dtype}'; {nearest(self.dtype, DTYPES)}")
