"""From worlds to training rows and prompts: both are pure functions of (seed, index).

Nothing here keeps a position, so a resumed run, another number of workers or another number of processes sees the same
rows at the same indices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

from torch.utils.data import Dataset

from mentor_base.data.emoji import EmojiWorld
from mentor_base.data.schema import IMAGE_MARK, Example, Prompt
from mentor_base.data.sources import RowWorld
from mentor_base.errors import UserError, nearest
from mentor_base.settings import Data, EmojiData, Mixture, PromptData

IMAGE_ONLY_TASKS = ("reconstruction", "recovery")  # the others cannot be told from pictures alone


class World(Protocol):
    """Where examples come from."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it can give."""

    def example(self, task: str, split: str, seed: int, index: int) -> Example:
        """One example: a pure function of the arguments."""

    def prompt(self, task: str, split: str, seed: int, index: int) -> Prompt:
        """What the example asks."""

    def corpus(self) -> list[str]:
        """The texts that a tokenizer has to know."""


def world_of(data: Data | PromptData, report: Path | None = None) -> World:
    """The world that a recipe's ``data`` section describes; ``report`` is where rows with broken pictures are named."""
    return EmojiWorld(data) if isinstance(data, EmojiData) else RowWorld(data, report)


class TaskDraw:
    """Which task stands at an index: drawn by weight from (seed, index).

    Raises:
        UserError: a task that the world does not have.
    """

    def __init__(self, weights: Mapping[Any, float], world: World, seed: int) -> None:
        for task in weights:
            if task not in world.tasks:
                raise UserError(f"weights.{task}: expected a task of the data, {nearest(task, world.tasks)}")
        if not weights:
            raise UserError(f"weights: expected at least one task of {', '.join(world.tasks)}, found none")
        self.tasks = tuple(weights)
        self.shares = tuple(weights.values())
        self.seed = seed

    def __call__(self, index: int) -> str:
        return Random(f"task/{self.seed}/{index}").choices(self.tasks, self.shares)[0]


class MixtureDataset(Dataset[Example]):
    """The rows of a supervised stage; ``dataset[i]`` is a pure function of (mixture, split, seed, i).

    Reconstruction and recovery can be asked for by pictures alone: of those rows ``mixture.image_only`` get the bare
    marks as text, here. Dropping the whole condition (``mixture.condition_drop``) is the trainer's business.
    """

    def __init__(self, mixture: Mixture, split: str, seed: int, length: int, world: World | None = None) -> None:
        self.world = world_of(mixture.data) if world is None else world
        self.mixture, self.split, self.seed, self.length = mixture, split, seed, length
        self.task_at = TaskDraw(mixture.weights, self.world, seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Example:
        _check_index(i, self.length)
        example = self.world.example(self.task_at(i), self.split, self.seed, i)
        share = self.mixture.image_only if example.task in IMAGE_ONLY_TASKS else 0.0
        if share and Random(f"image-only/{self.seed}/{i}").random() < share:
            return replace(example, text=" ".join([IMAGE_MARK] * len(example.images)))
        return example


class PromptList:
    """Prompts in a fixed order: ``prompts[i]`` is a pure function of (weights, split, seed, i)."""

    def __init__(
        self,
        data: Data | PromptData,
        weights: Mapping[Any, float],
        split: str,
        seed: int,
        length: int,
        world: World | None = None,
    ) -> None:
        self.world = world_of(data) if world is None else world
        self.split, self.seed, self.length = split, seed, length
        self.task_at = TaskDraw(weights, self.world, seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Prompt:
        _check_index(i, self.length)
        return self.world.prompt(self.task_at(i), self.split, self.seed, i)


def _check_index(i: int, length: int) -> None:
    if not 0 <= i < length:
        raise IndexError(f"expected an index in [0, {length}), found {i}")
