"""The two central types of data: an Example to learn from, and a Prompt to roll out.

Text carries one ``<image>`` mark for each picture, in order: ``"this fox in line-art style <image>"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from PIL import Image

from mentor_base.errors import UserError, nearest
from mentor_base.settings import Task

IMAGE_MARK = "<image>"
TASKS: tuple[str, ...] = get_args(Task)


class Codes(NamedTuple):
    """A target as a VQ tokenizer's codes, made once (``mentor data encode``).

    Attributes:
        tokenizer: fingerprint of the tokenizer (VQModel.fingerprint); no other can read them.
        tokens: the picture's L codes, row-major.
    """

    tokenizer: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """One supervised row.

    Attributes:
        task: one of TASKS.
        text: the instruction or caption, with one ``<image>`` mark per picture in ``images``.
        images: reference pictures, PIL RGB.
        target: the picture to be generated, PIL RGB.
        subject: name of what is shown; None where no single subject is.
        mask: 8-bit mask of the subject in the target (segmentation, recovery); None elsewhere.
        meta: facts for rewards and evaluation, e.g. style, background, reference_style, count, position.
        codes: the target as codes; None where nobody made them yet.
    """

    task: str
    text: str
    images: tuple[Image.Image, ...]
    target: Image.Image
    subject: str | None = None
    mask: Image.Image | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    codes: Codes | None = None

    def __post_init__(self) -> None:
        check_text(self.text, len(self.images), where=str(self.meta.get("where", "example")))
        if self.task not in TASKS:
            raise UserError(
                f"{self.meta.get('where', 'example')}: unknown task '{self.task}'; {nearest(self.task, TASKS)}"
            )

    def prompt(self) -> Prompt:
        """The same row without its target."""
        return Prompt(self.text, self.images, self.subject, {**self.meta, "task": self.task})


@dataclass(frozen=True)
class Prompt:
    """What a policy is asked: text with ``<image>`` marks, and the pictures for them."""

    text: str
    images: tuple[Image.Image, ...] = ()
    subject: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text(self.text, len(self.images), where=str(self.meta.get("where", "prompt")))

    @property
    def plain_text(self) -> str:
        """The text without marks, as rewards want it."""
        return " ".join(self.text.replace(IMAGE_MARK, " ").split())


def check_text(text: str, pictures: int, where: str) -> None:
    """Refuse empty captions, and counts of ``<image>`` marks and pictures that differ."""
    marks = text.count(IMAGE_MARK)
    if marks != pictures:
        raise UserError(
            f"{where}: expected one {IMAGE_MARK} mark per picture, found {marks} marks and {pictures} pictures"
        )
    if not text.replace(IMAGE_MARK, "").strip() and not pictures:
        raise UserError(f"{where}: expected a caption, found an empty text")
