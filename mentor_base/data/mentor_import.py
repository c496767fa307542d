"""MENTOR's released JSONL rows -> rows.jsonl of ours, with the pictures that MENTOR makes while it reads.

The reference makes three kinds of pictures anew at each draw: the cut-out that segmentation is to give, the distracting
scene that recovery starts from, and the crops of several objects. Here they are made once and written, so that

- a row is pictures and text whatever its task, in every source, for every tool that reads rows;
- a run needs neither masks nor the list of backgrounds, and what it sees is in files that one can look at;
- a draw costs one decoded picture and no distortion of 512 x 512 pixels.

The price is disk, and that two passes see the same scene; ``variants`` writes several rows with a scene each for
recovery, and several choices of crops for multi_image. Random numbers come from (seed, line, variant) alone: neither
``limit`` nor a broken row before it changes what a line becomes. Other pictures are not copied, rows name them where
they are, relative to the new file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from mentor_base.data.broken import BrokenRows
from mentor_base.data.composites import binary_mask, cut_out, distracting_scene, object_crop, squeezed
from mentor_base.data.jsonl import JsonlFile
from mentor_base.data.mentor_rows import MentorRow, read_mentor_rows
from mentor_base.data.rows import BrokenPicture, FilePicture, decode, os_reason, parse_object
from mentor_base.errors import UserError
from mentor_base.progress import ProgressBar

SHOWN = 10
VARIED = ("recovery", "multi_image")
JPEG_QUALITY = 95  # references only: they are seen at the 224 pixels of CLIP


@dataclass(frozen=True)
class ImportOptions:
    """How rows are converted.

    Attributes:
        root: folder of relative paths.
        moved: (old, new) beginnings of paths, for files that lie elsewhere than where they were made.
        backgrounds: pictures behind the objects of recovery.
        size: side of the pictures that are made, in pixels.
        seed: of the random numbers.
        variants: rows per row of recovery and multi_image.
        limit: rows taken from the start; None for all.
        ignore: keys that rows may have besides MENTOR's.
    """

    root: Path
    moved: tuple[tuple[str, str], ...] = ()
    backgrounds: tuple[Path, ...] = ()
    size: int = 512
    seed: int = 0
    variants: int = 1
    limit: int | None = None
    ignore: tuple[str, ...] = ()


@dataclass
class ImportCounts:
    """What became of the rows, by task."""

    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    pictures: Counter[str] = field(default_factory=Counter)


def import_mentor(source: Path, out: Path, options: ImportOptions, broken: BrokenRows) -> ImportCounts:
    """Convert ``source`` into ``out/rows.jsonl`` and ``out/pictures``; all rows are checked before any is written.

    Raises:
        UserError: rows that make no sense (SHOWN of them, a line each), recovery without backgrounds, too many broken
            pictures.
    """
    counts = ImportCounts(_check_rows(source, options))
    if counts.read["recovery"] and not options.backgrounds:
        raise UserError(
            f"{source}: expected --backgrounds, pictures to put behind the objects of {counts.read['recovery']} "
            "rows of recovery; found none"
        )
    (out / "pictures").mkdir(parents=True)
    rows = out / "rows.jsonl"
    partial = out / ".rows.jsonl.partial"  # renamed when whole
    maker = _Maker(out, options)
    with partial.open("w", encoding="utf-8") as file, ProgressBar("converting", counts.read.total()) as bar:
        for row in _rows(source, options):
            assert isinstance(row, MentorRow), "checked above"
            broken.drawn += 1
            try:
                entries = maker.entries(row)
            except BrokenPicture as error:
                broken.note(error)
                counts.broken[row.task] += 1
                entries = []
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
            counts.written[row.task] += len(entries)
            bar.advance(note=f"{broken.met} broken")
    counts.pictures = maker.made
    partial.rename(rows)
    JsonlFile(rows)  # what is written can be read
    return counts


def read_backgrounds(path: Path, options: ImportOptions) -> tuple[Path, ...]:
    """The pictures of a JSONL list with the key ``input_image``, as the reference has it."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path}: expected a JSONL list of backgrounds, found {os_reason(error)}") from error
    pictures = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name = parse_object(line, f"{path}:{number}").get("input_image")
            if not isinstance(name, str):
                raise UserError(f"{path}:{number}: expected the key 'input_image' with a picture path, found none")
            pictures.append(located(name, options))
    if not pictures:
        raise UserError(f"{path}: expected at least one background, found an empty file")
    return tuple(pictures)


def located(name: str, options: ImportOptions) -> Path:
    """Where the file of a row's path is."""
    for old, new in options.moved:
        if name.startswith(old):
            name = new + name[len(old) :]
            break
    return options.root / name


def _rows(source: Path, options: ImportOptions) -> Iterator[MentorRow | UserError]:
    return islice(read_mentor_rows(source, options.ignore), options.limit)


def _check_rows(source: Path, options: ImportOptions) -> Counter[str]:
    """How many rows of each task there are."""
    read: Counter[str] = Counter()
    faults: list[str] = []
    for row in _rows(source, options):
        if isinstance(row, UserError):
            faults.append(str(row))
        else:
            read[row.task] += 1
    if faults:
        more = [f"{source}: {len(faults) - SHOWN} more rows cannot be used"] if len(faults) > SHOWN else []
        raise UserError("\n".join([*faults[:SHOWN], *more]))
    if not read:
        raise UserError(f"{source}: expected at least one row, found an empty file")
    return read


class _Maker:
    """Rows of ours out of rows of MENTOR's, with the pictures they need."""

    def __init__(self, out: Path, options: ImportOptions) -> None:
        self.out, self.options = out, options
        self._folder = out.resolve()
        self.made: Counter[str] = Counter()

    def entries(self, row: MentorRow) -> list[dict[str, Any]]:
        """The JSON objects of a row; BrokenPicture when a picture that is needed cannot be read."""
        if row.task == "segmentation":
            return [self._segmentation(row)]
        if row.task in VARIED:
            make = self._recovery if row.task == "recovery" else self._crops
            return [make(row, variant) for variant in range(self.options.variants)]
        assert row.target is not None
        return [self._entry(row, [self._name(image) for image in row.images], self._name(row.target))]

    def _segmentation(self, row: MentorRow) -> dict[str, Any]:
        image, mask = squeezed(self._decoded(row, row.images[0]), self.options.size), self._mask(row, 0)
        target = self._save(row, cut_out(image, mask), "target.png")
        return self._entry(row, [self._name(row.images[0])], target, self._save(row, mask, "mask.png"))

    def _recovery(self, row: MentorRow, variant: int) -> dict[str, Any]:
        assert row.target is not None
        rng = self._rng(row, variant)
        target = self._decoded(row, row.target)
        image, background = squeezed(target, self.options.size), self._background(row, rng)
        scene = distracting_scene(image, self._mask(row, 0), background, rng)
        images = [self._save(row, scene, f"scene{variant}.jpg")]
        shown = self._save(row, self._mask(row, 0, target.size), "mask.png")  # of the target, which keeps its size
        return self._entry(row, images, self._name(row.target), shown)

    def _crops(self, row: MentorRow, variant: int) -> dict[str, Any]:
        assert row.target is not None
        rng = self._rng(row, variant)
        image = squeezed(self._decoded(row, row.target), self.options.size)
        crops = [object_crop(image, self._mask(row, k), rng) for k in range(len(row.masks))]
        names = [self._save(row, crop, f"object{k}.{variant}.jpg") for k, crop in enumerate(crops)]
        return self._entry(row, names, self._name(row.target))

    def _rng(self, row: MentorRow, variant: int) -> Random:
        return Random(f"mentor-import/{self.options.seed}/{row.number}/{variant}")

    def _background(self, row: MentorRow, rng: Random) -> Image.Image:
        path = rng.choice(self.options.backgrounds)
        return decode(FilePicture(path), row.where, "background")

    def _decoded(self, row: MentorRow, name: str) -> Image.Image:
        return decode(FilePicture(located(name, self.options)), row.where, "source_image")

    def _mask(self, row: MentorRow, k: int, size: tuple[int, int] | None = None) -> Image.Image:
        path = located(row.masks[k], self.options)
        mask = decode(FilePicture(path), row.where, "mask")
        try:
            return binary_mask(mask, size or (self.options.size, self.options.size))
        except ValueError as error:
            raise BrokenPicture(row.where, "image_path", f"{path}: {error}") from error

    def _save(self, row: MentorRow, image: Image.Image, name: str) -> str:
        """Write a picture; its path relative to the rows. A thousand lines share a folder."""
        relative = Path("pictures") / f"{row.number // 1000:06d}" / f"{row.number:09d}.{name}"
        (self.out / relative).parent.mkdir(exist_ok=True)
        image.save(self.out / relative, quality=JPEG_QUALITY)  # PNG has no such choice, and leaves it unread
        self.made[row.task] += 1
        return str(relative)

    def _name(self, name: str) -> str:
        path = located(name, self.options)  # ".." leads out of where a linked folder really is
        return os.path.relpath(path.parent.resolve() / path.name, self._folder)

    def _entry(self, row: MentorRow, images: Sequence[str], target: str, mask: str | None = None) -> dict[str, Any]:
        entry = {"task": row.task, "text": row.text, "images": list(images), "target": target}
        optional = {"subject": row.subject, "mask": mask}
        return entry | {key: value for key, value in optional.items() if value is not None}
