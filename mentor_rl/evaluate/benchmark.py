"""What a benchmark on pictures is. picture_run.py runs one in two stages, and each goes on after any kill:

1. draw    items -> PNG files, RUN/pictures/<policy>/<item id>_<seed>.png; see drawing.py
2. score   pictures -> facts, one JSON line per picture as soon as they are known (score_store.py), and from all facts
           a Result

Both are dealt out over the processes of a torchrun call. A benchmark is one file with a class that has the members of
Benchmark, and a line in BUILDERS of picture_run.py; its recipe is a PictureRecipe in recipes.py. It does not draw, keep
files, deal out work or know who the policies are.

Errors: a data set that is not there is one UserError that names the layout that was expected and where it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError
from mentor_rl.evaluate.result import Value

Reference = Callable[[], Image.Image]  # opened when it is needed: a data set may be larger than the memory
Facts = Mapping[str, Any]  # JSON: what a judge found in one picture, e.g. {"cp": [3, 4, 3]}
PictureKey = tuple[str, int]  # item id, seed

_ID = re.compile(r"[^./\x00-\x1f][^/\x00-\x1f]{0,199}")


@dataclass(frozen=True)
class Item:
    """One thing to draw, and what a judge has to know of it.

    Attributes:
        id: unique within the benchmark, and a part of a file name.
        text: the prompt, with one ``<image>`` mark for each reference.
        references: open the reference pictures, e.g. ``partial(open_picture, path)``.
        subject: as in Prompt.
        facts: whatever ``score`` and ``tabulate`` need, e.g. {"category": "animal"}.
    """

    id: str
    text: str
    references: tuple[Reference, ...] = ()
    subject: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise UserError(f"item id {self.id!r}: expected the beginning of a file name: no '/', no '.' in front")

    def prompt(self) -> Prompt:
        """The prompt with its reference pictures."""
        meta = {"where": self.id, "task": "subject" if self.references else "t2i"}
        return Prompt(self.text, tuple(opened() for opened in self.references), self.subject, meta)


@dataclass(frozen=True)
class Sample:
    """One picture to score."""

    item: Item
    seed: int
    image: Image.Image


@dataclass(frozen=True)
class Unscored:
    """What ``score`` gives in the place of facts where there are none; asked again by the next call."""

    reason: str


@dataclass(frozen=True)
class Scored:
    """All that is known of one row (a policy, or a folder of pictures) when its table is made.

    Attributes:
        row: its name.
        items, seeds: what was asked for.
        facts: of each picture that was scored.
        path: where the picture of (item id, seed) lies; for benchmarks that look at all pictures together.
    """

    row: str
    items: tuple[Item, ...]
    seeds: tuple[int, ...]
    facts: Mapping[PictureKey, Facts]
    path: Callable[[str, int], Path]

    def by_item(self) -> list[tuple[Item, list[Facts]]]:
        """The facts of each item, over its seeds; items without any are left out."""
        found = [(item, [self.facts[item.id, s] for s in self.seeds if (item.id, s) in self.facts])
                 for item in self.items]  # fmt: skip
        return [(item, facts) for item, facts in found if facts]


@dataclass(frozen=True)
class Tabulated:
    """One row's numbers.

    Attributes:
        metrics: of the row under "", of its parts under their names: {"": {"CP": .5}, "animal": {"CP": .4}}.
        per_item: columns of equal length, "item" first: goes into Result.per_item.
        notes: what these numbers leave out, e.g. why a column is empty.
    """

    metrics: Mapping[str, Mapping[str, Value]]
    per_item: Mapping[str, list[Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Benchmark(Protocol):
    """A benchmark. Constructed from its recipe, with a look at its data. What judges is looked for by ``check``, before
    there is a run folder, and read by ``load``, when all is drawn.

    Attributes:
        name: as in the recipe.
        floor: the facts that a missing picture is counted with in the lower bound of an incomplete row, e.g.
            {"cp": [0]}; None: no such bound.
    """

    name: str
    floor: Facts | None

    def items(self) -> Sequence[Item]:
        """What there is to draw, always in the same order.

        Raises:
            UserError: the data set is not there, or not in the expected layout.
        """

    def check(self) -> None:
        """Refuse what ``load`` would miss: packages, servers, files (fetched, where a hub has them). Reads no weights.

        Raises:
            UserError, RewardError: which, where, and what was expected.
        """

    def load(self, device: str) -> None:
        """Bring the judge to a device."""

    def unload(self) -> None:
        """Free what ``load`` took."""

    @property
    def judge(self) -> str:
        """Who judges: names and checksums of all checkpoints, versions of prompts; known after ``load``.

        Facts that were found by another judge are not used again.
        """

    @property
    def stand_in(self) -> bool:
        """Whether the judge is another one than the published numbers have; known after ``load``."""

    @property
    def prompts(self) -> str:
        """Which data the items come from, e.g. "DreamBench++ (1,350 prompts)"."""

    def score(self, samples: Sequence[Sample]) -> list[Facts | Unscored]:
        """The facts of each picture; may depend on nothing but the picture and its item."""

    def tabulate(self, scored: Scored) -> Tabulated:
        """The numbers of one row; never asked about a row without a single scored picture."""

    def notes(self) -> Sequence[str]:
        """Footnotes: how the protocol differs from the published one."""
