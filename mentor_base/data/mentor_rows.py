"""What a row of MENTOR's released JSONL files means. Its fields flip between rows; the flags tell how.

    task            flags                                     image_path is    source_image is
    t2i             generation_only, no objects               target           (not read)
    reconstruction  no objects                                target           reference
    segmentation    objects a name, do_mask                   mask             reference; the target is its cut-out
    recovery        objects a name, do_replace                mask             target; the reference is made of it
    subject         objects a name                            reference        target
    multi_image     objects a list, image_path a list         masks            target; the references are its crops
    in_context      input_img_list                            (not read)       target

Sources: the released data set class and scripts (github.com/HaozheZhao/MENTOR, dataset/t2i.py, with ``--do_recovery``).

Deviations: rows that contradict themselves are refused, where the reference lets one flag win, or trains on pairs that
mean nothing: do_mask with do_replace, either of them without one named object, generation_only with objects, and other
numbers of marks than pictures. A text has one <image> mark per picture, not one per patch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentor_base.data.rows import os_reason, parse_object, shown
from mentor_base.data.schema import IMAGE_MARK
from mentor_base.errors import UserError, nearest

FLAGS = ("generation_only", "do_mask", "do_replace")
READ = ("image_path", "source_image", "input_text", "objects", "input_img_list", *FLAGS)
IGNORED = ("global_idx", "segment_idx")  # the reference does not read them either


@dataclass(frozen=True)
class MentorRow:
    """One row, its fields by their meaning. Paths are as the row has them.

    Attributes:
        where: "stage1.jsonl:12".
        number: the line, from 1.
        images: reference pictures; empty for recovery and multi_image, whose references are made of ``target``.
        target: the picture to be generated; None for segmentation, whose target is made of the reference.
        masks: of the subject (segmentation, recovery) or of each object (multi_image).
    """

    where: str
    number: int
    task: str
    text: str
    images: tuple[str, ...] = ()
    target: str | None = None
    masks: tuple[str, ...] = ()
    subject: str | None = None


def read_mentor_rows(path: Path, ignore: Collection[str] = ()) -> Iterator[MentorRow | UserError]:
    """The rows of a released file in order, and in place of one that makes no sense its error."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield parse_mentor_row(line, path, number, ignore)
                    except UserError as error:
                        yield error
    except OSError as error:
        raise UserError(f"{path}: expected a readable JSONL file, found {os_reason(error)}") from error


def parse_mentor_row(line: bytes, path: Path, number: int, ignore: Collection[str] = ()) -> MentorRow:
    """The row of one line.

    Raises:
        UserError: unknown keys, values of another type, flags that contradict each other.
    """
    where = f"{path}:{number}"
    entry = parse_object(line.rstrip(b"\r\n"), where)
    if "input_image" in entry and "source_image" not in entry:
        raise UserError(f"{where}: expected a row to train on, found one of a list of backgrounds; see --backgrounds")
    for key in entry:
        if key not in READ and key not in IGNORED and key not in ignore:
            raise UserError(f"{where}: unknown key '{key}'; {nearest(key, READ)}; --ignore leaves it out")
    fields = _Fields(entry, where)
    flags = {name: fields.flag(name) for name in FLAGS}
    _refuse_contradictions(flags, entry.get("objects"), where)
    if entry.get("input_img_list") is not None:
        return _with_list(fields, flags, number)
    if isinstance(entry.get("objects"), list):
        return _with_objects(fields, number)
    if entry.get("objects") is not None:
        return _with_subject(fields, flags, number)
    caption = fields.caption()
    if flags["generation_only"]:
        return MentorRow(where, number, "t2i", caption, target=fields.path("image_path"))
    text = f"The image is {IMAGE_MARK}\n{caption}"
    images = (fields.path("source_image"),)
    return MentorRow(where, number, "reconstruction", text, images, fields.path("image_path"))


def _refuse_contradictions(flags: dict[str, bool], objects: Any, where: str) -> None:
    on = [name for name, value in flags.items() if value]
    if len(on) > 1:
        raise UserError(f"{where}: expected at most one of {', '.join(FLAGS)}, found {' and '.join(on)}")
    if flags["generation_only"] and objects is not None:
        raise UserError(f"{where}: objects: expected null with generation_only, found {shown(objects)}")
    if (flags["do_mask"] or flags["do_replace"]) and not isinstance(objects, str):
        raise UserError(f"{where}: objects: expected the name of one object with {on[0]}, found {shown(objects)}")


def _with_subject(fields: _Fields, flags: dict[str, bool], number: int) -> MentorRow:
    """One named object: segmentation, recovery, or the subject in another picture."""
    name = fields.text("objects")
    image, source = fields.path("image_path"), fields.path("source_image")
    prefix = f"The {name} in {IMAGE_MARK}."
    if flags["do_mask"]:
        return MentorRow(fields.where, number, "segmentation", prefix, (source,), masks=(image,), subject=name)
    text = f"{prefix}\n{fields.caption()}"
    if flags["do_replace"]:
        return MentorRow(fields.where, number, "recovery", text, target=source, masks=(image,), subject=name)
    return MentorRow(fields.where, number, "subject", text, (image,), source, subject=name)


def _with_objects(fields: _Fields, number: int) -> MentorRow:
    """Several named objects, each with its mask in the target."""
    names, masks = fields.texts("objects"), fields.texts("image_path")
    if len(names) != len(masks):
        raise UserError(
            f"{fields.where}: image_path: expected a mask for each of {len(names)} objects, found {len(masks)}"
        )
    lines = [f"The {name} in {IMAGE_MARK}." for name in names]
    text = "\n".join([*lines, fields.caption()])
    return MentorRow(fields.where, number, "multi_image", text, target=fields.path("source_image"), masks=masks)


def _with_list(fields: _Fields, flags: dict[str, bool], number: int) -> MentorRow:
    """Pictures that the text itself has marks for."""
    for name, value in flags.items():
        if value:
            raise UserError(f"{fields.where}: {name}: expected false with input_img_list, found true")
    images, text = fields.texts("input_img_list"), fields.text("input_text")
    if text.count(IMAGE_MARK) != len(images):
        raise UserError(
            f"{fields.where}: input_text: expected one {IMAGE_MARK} mark per picture of input_img_list, found "
            f"{text.count(IMAGE_MARK)} marks and {len(images)} pictures"
        )
    return MentorRow(fields.where, number, "in_context", text, images, fields.path("source_image"))


class _Fields:
    """Typed looks at a row's fields."""

    def __init__(self, entry: dict[str, Any], where: str) -> None:
        self.entry, self.where = entry, where

    def flag(self, key: str) -> bool:
        value = self.entry.get(key)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{self.where}: {key}: expected true or false, found {shown(value)}")
        return bool(value)

    def text(self, key: str) -> str:
        if key not in self.entry:
            raise UserError(f"{self.where}: expected the key '{key}', found {', '.join(self.entry) or 'no key'}")
        value = self.entry[key]
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{self.where}: {key}: expected a text that is not empty, found {shown(value)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.entry.get(key)
        if not isinstance(values, list) or not values or not all(isinstance(each, str) and each for each in values):
            raise UserError(f"{self.where}: {key}: expected a list of texts, found {shown(values)}")
        return tuple(values)

    def path(self, key: str) -> str:
        """One picture; a list of one is that one."""
        value = self.entry.get(key)
        if isinstance(value, list):
            if len(value) != 1:
                raise UserError(f"{self.where}: {key}: expected one picture, found {len(value)}")
            return self.texts(key)[0]
        return self.text(key)

    def caption(self) -> str:
        """The text without the marks that some rows have."""
        caption = " ".join(part.strip() for part in self.text("input_text").split(IMAGE_MARK) if part.strip())
        if not caption:
            raise UserError(f"{self.where}: input_text: expected a caption, found marks alone")
        return caption
