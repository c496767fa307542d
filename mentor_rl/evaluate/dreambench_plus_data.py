"""DreamBench++ on disk: 150 reference pictures with nine prompts each.

    DATA/images/live_subject/animal/00.jpg      DATA/captions/live_subject/animal/00.txt
    DATA/images/object/00.jpg                   DATA/captions/object/00.txt        (style alike)

Line 1 of a caption file names the subject, lines 2 to 10 are prompts: four photorealistic, three in a style, two
imaginative. Ids are those of the published code: ``live_subject_animal_00_<subject>``, in small letters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mentor_base.data.schema import IMAGE_MARK
from mentor_base.errors import UserError
from mentor_rl.evaluate.benchmark import Item
from mentor_rl.pictures import open_picture, pictures_below

REFERENCES = {"animal": 45, "human": 20, "object": 65, "style": 20}
KINDS = ("photorealistic",) * 4 + ("style",) * 3 + ("imaginative",) * 2
PROMPTS = len(KINDS)
SOURCE = "data.zip of yuangpeng/dreambench_plus on the Hugging Face hub"


@dataclass(frozen=True)
class ReferencePicture:
    """One of the 150: ``category`` is animal, human, object or style."""

    id: str
    category: str
    subject: str
    file: Path
    prompts: tuple[str, ...]


def read_references(data: Path) -> list[ReferencePicture]:
    """All references, by collection and number.

    Raises:
        UserError: the folder is not in that layout, or not complete.
    """
    images = data / "images"
    files = pictures_below(images)
    if not files:
        raise UserError(
            f"{data}: expected images/live_subject/animal/00.jpg, ... and captions/live_subject/animal/00.txt, ..., "
            f"found no pictures in {images}; unpack {SOURCE}"
        )
    found = [_reference(data, file) for file in files]
    counts = Counter(reference.category for reference in found)
    if counts != REFERENCES:
        wanted = ", ".join(f"{name} {number}" for name, number in REFERENCES.items())
        there = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
        raise UserError(f"{images}: expected {wanted} pictures, found {there}; unpack {SOURCE}")
    return found


def items_of(references: Sequence[ReferencePicture], template: str) -> Iterator[Item]:
    """Nine items per reference. ``template`` has {prompt}, perhaps {subject}, and one ``<image>`` mark."""
    for reference in references:
        for number, (kind, prompt) in enumerate(zip(KINDS, reference.prompts, strict=True)):
            yield Item(
                id=f"{reference.id}_p{number}",
                text=template.format(prompt=prompt.replace(IMAGE_MARK, ""), subject=reference.subject),
                references=(partial(open_picture, reference.file, upright=True),),
                subject=reference.subject,
                facts={"category": reference.category, "kind": kind, "prompt": prompt},
            )


def _reference(data: Path, file: Path) -> ReferencePicture:
    place = file.relative_to(data / "images").with_suffix("")
    caption = (data / "captions" / place).with_suffix(".txt")
    if not caption.is_file():
        raise UserError(f"{file}: expected its subject and prompts in {caption}, found no such file")
    lines = [line.strip() for line in caption.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) != 1 + PROMPTS:
        raise UserError(f"{caption}: expected a subject and {PROMPTS} prompts, found {len(lines)} lines")
    words = [*place.parts[:-1], place.name, lines[0]]
    name = "_".join(words).lower().replace(" ", "_").replace("/", "_")
    return ReferencePicture(name, place.parent.name, lines[0], file, tuple(lines[1:]))
