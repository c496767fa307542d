"""DreamBench on disk: thirty subjects with four to six pictures each, and two lists of 25 prompts.

    DATA/prompts_and_classes.txt    "subject_name,class" lines, then two Python lists of '...'.format(unique_token, ...)
    DATA/backpack/00.jpg

The prompt file is read with regular expressions and never run. Prompts have no unique token: a tuning-free model knows
no such word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mentor_base.data.schema import IMAGE_MARK
from mentor_base.errors import UserError
from mentor_rl.evaluate.benchmark import Item
from mentor_rl.pictures import open_picture, pictures_below

PROMPT_FILE = "prompts_and_classes.txt"
SUBJECTS, PROMPTS = 30, 25
LIVE_CLASSES = ("cat", "dog")
SOURCE = "the folder dataset/ of google/dreambooth on GitHub"

_CLASS = re.compile(r"^([\w-]+),([\w -]+)$", re.MULTILINE)
_LIST = re.compile(r"prompt_list = \[(.*?)\]", re.DOTALL)
_PROMPT = re.compile(r"""(['"])(.*?)\1\.format\(unique_token, class_token\)""")


@dataclass(frozen=True)
class Subject:
    """One of the thirty; ``pictures`` in the order of their names."""

    name: str
    kind: str
    pictures: tuple[Path, ...]
    prompts: tuple[str, ...]

    @property
    def live(self) -> bool:
        """Whether it gets the prompts for living things."""
        return self.kind in LIVE_CLASSES


def read_subjects(data: Path) -> list[Subject]:
    """All subjects, in the file's order.

    Raises:
        UserError: the folder is not in that layout, or not complete.
    """
    file = data / PROMPT_FILE
    if not file.is_file():
        raise UserError(
            f"{data}: expected {PROMPT_FILE} and backpack/00.jpg, ..., found no {PROMPT_FILE}; take {SOURCE}"
        )
    text = file.read_text(encoding="utf-8")
    classes = [(name, kind) for name, kind in _CLASS.findall(text) if name != "subject_name"]
    lists = [[prompt for _, prompt in _PROMPT.findall(body)] for body in _LIST.findall(text)]
    if len(classes) != SUBJECTS or [len(prompts) for prompts in lists] != [PROMPTS, PROMPTS]:
        raise UserError(
            f"{file}: expected {SUBJECTS} subjects and two lists of {PROMPTS} prompts, found {len(classes)} and "
            f"{[len(prompts) for prompts in lists]}; take {SOURCE}"
        )
    return [_subject(data, name, kind, lists[kind in LIVE_CLASSES]) for name, kind in classes]


def items_of(subjects: Sequence[Subject], template: str) -> Iterator[Item]:
    """25 items per subject, each with the subject's first picture as reference."""
    for subject in subjects:
        for number, prompt in enumerate(subject.prompts):
            yield Item(
                id=f"{subject.name}_p{number:02d}",
                text=template.format(prompt=prompt.replace(IMAGE_MARK, ""), subject=subject.kind),
                references=(partial(open_picture, subject.pictures[0], upright=True),),
                subject=subject.kind,
                facts={"prompt": prompt, "subject": subject.name, "live": subject.live},
            )


def _subject(data: Path, name: str, kind: str, prompts: Sequence[str]) -> Subject:
    folder = data / name
    pictures = pictures_below(folder)
    if not pictures:
        raise UserError(f"{folder}: expected the pictures of '{name}', 00.jpg and so on, found none; take {SOURCE}")
    filled = (" ".join(prompt.format("", kind).split()) for prompt in prompts)
    return Subject(name, kind, tuple(pictures), tuple(filled))
