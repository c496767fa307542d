"""Tables of pictures: prompt, references, picture, every reward and the advantage, one row per picture.

Two are written while a run trains: ``fixed``, the fixed prompts, each time they are drawn, and ``groups``, whole groups
of the rollout that is trained on (``monitoring.table``). Both go to the run folder (gallery.py, group_files.py) and to
every tracker that ``report_to`` names (trackers.py).

Fixed prompts are drawn one by one and teach nothing: they have no advantage.

Shapes: N samples of this process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from PIL import Image

if TYPE_CHECKING:
    import torch
    from mentor_rewards.composite import CompositeScores

    from mentor_rl.rollout import Rollout

SIDE = 256  # largest side of a picture in a table, pixels


@dataclass(frozen=True)
class Row:
    """One picture.

    Attributes:
        uid: of its prompt; pictures of a group share it.
        text: the prompt without marks.
        references: what was given with it.
        scores: native units, by reward; None: could not score, or does not apply.
        advantage: as the loss has it; None for a picture that is not trained on.
    """

    uid: int
    text: str
    references: tuple[Image.Image, ...]
    picture: Image.Image
    scores: Mapping[str, float | None]
    advantage: float | None = None


@dataclass(frozen=True)
class PictureTable:
    """Rows of one step; those of a group are neighbours."""

    name: Literal["fixed", "groups"]
    step: int
    rows: tuple[Row, ...]

    @property
    def rewards(self) -> tuple[str, ...]:
        return tuple(self.rows[0].scores)


def rows_of(rollout: Rollout, raw: Mapping[str, Sequence[float | None]]) -> list[Row]:
    """A row per sample of a rollout, without advantages. ``raw``: native scores by reward, at least N of each."""
    return [
        Row(
            rollout.group_ids[i],
            prompt.plain_text,
            prompt.images,
            rollout.images[i],
            {name: values[i] for name, values in raw.items()},
        )
        for i, prompt in enumerate(rollout.prompts)
    ]


class GroupTable:
    """Chooses the groups that are shown: the first of a rollout, every so many steps, from the first step on.

    Args:
        groups: how many.
        every: optimizer steps between two tables.
    """

    def __init__(self, groups: int, every: int) -> None:
        self.groups, self.every = groups, every

    def due(self, done: int, inner_iterations: int) -> bool:
        """Whether the rollout drawn after ``done`` optimizer steps is shown; one is drawn every so many of them."""
        return done // self.every != (done - inner_iterations) // self.every

    def of(self, rollout: Rollout, scores: CompositeScores, advantages_N: torch.Tensor, step: int) -> PictureTable:
        """The first groups of this process.

        Args:
            scores: of this process' samples first.
        """
        shown = list(dict.fromkeys(rollout.group_ids))[: self.groups]
        rows = [
            Row(row.uid, row.text, row.references, row.picture, row.scores, advantage)
            for row, advantage in zip(rows_of(rollout, scores.raw), advantages_N.tolist(), strict=True)
            if row.uid in shown
        ]
        return PictureTable("groups", step, tuple(sorted(rows, key=lambda row: shown.index(row.uid))))


def small(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A copy no larger than ``side``."""
    copy = image.copy()
    copy.thumbnail((side, side))
    return copy
