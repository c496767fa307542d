"""What the rules of the contract are tried on: a way to build the reward, and pictures that it can score.

A rule's check returns None when it holds, else what was found. It raises NotApplicable where the spec declares an
exception from it, and Blocked where another rule has to hold first.
"""

from __future__ import annotations

import asyncio
import copy
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from PIL import Image

from mentor_rewards.contract import (
    AnyReward,
    AsyncReward,
    Reward,
    RewardBatch,
    RewardError,
    RewardOutput,
    RewardSpec,
    error_line,
    misfit,
)
from mentor_rewards.reward_schedule import is_async
from mentor_rewards.testing_guards import blocked_network

Factory = Callable[[], AnyReward]
Scores = Sequence[float | None]


class NotApplicable(Exception):
    """The spec declares that the rule does not hold for this reward, or declares nothing that could be tried."""


class Blocked(Exception):
    """The rule cannot be tried before another one holds."""


class Malformed(Exception):
    """An answer that is not one score per picture."""


@dataclass(frozen=True)
class Rule:
    """One rule of the contract.

    Attributes:
        name: short, for test names and ``-k``.
        states: what holds.
        why: what goes wrong in training when it does not.
    """

    name: str
    states: str
    why: str
    check: Callable[[Case], str | None] = field(repr=False)


class Loaded:
    """A loaded reward and, for one that waits, its event loop; unloaded by ``close``."""

    def __init__(self, case: Case) -> None:
        self.reward = case.factory()
        self.reward.load(case.device, case.dtype)
        self._runner = asyncio.Runner()

    def answer(self, batch: RewardBatch, copied: bool = True) -> RewardOutput:
        """One call that shares no work with others, on a copy of the batch: a careless reward may change it."""
        fresh = copy_of(batch) if copied else replace(batch, shared={})
        if is_async(self.reward):
            output = self._runner.run(cast(AsyncReward, self.reward).ascore(fresh))
        else:
            output = cast(Reward, self.reward).score(fresh)
        problem = misfit(output, len(batch))
        if problem is not None:
            raise Malformed(problem)
        return output

    def scores(self, batch: RewardBatch) -> list[float | None]:
        """The scores alone; a list, also where an array or a tensor came, which one of the rules will tell."""
        return list(self.answer(batch).scores)

    def close(self) -> None:
        """Unload."""
        self.reward.unload()
        self._runner.close()


@dataclass
class Case:
    """What rules are tried on: how to build the reward, and pictures that it can score.

    Attributes:
        factory: builds the reward, unloaded.
        batch: at least 3 pictures.
        tolerance: largest difference between scores that should be equal, relative to the larger of 1 and the score.
        device, dtype: for ``load``.
    """

    factory: Factory
    batch: RewardBatch
    tolerance: float = 1e-4
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.batch) < 3:
            raise RewardError(f"contract check: expected a batch of at least 3 pictures, found {len(self.batch)}")
        self.batch = copy_of(self.batch)
        self._loaded: Loaded | None = None

    @cached_property
    def spec(self) -> RewardSpec:
        """What the author declares."""
        with blocked_network():
            try:
                spec = getattr(self.factory(), "spec", None)
            except Exception as error:
                raise Blocked("'spec' has to hold first") from error
        if not isinstance(spec, RewardSpec):
            raise Blocked("'spec' has to hold first")
        return spec

    def require(self, rule: Rule) -> None:
        """Raise Blocked unless what the rule builds on is there: the spec, and scores of the batch as it stands."""
        if rule.name != "spec":
            _ = self.spec
        if rule.name not in ("spec", "memory", "network", "length"):
            _ = self.plain

    def declares_network(self) -> bool:
        """Whether the spec, as far as there is one, allows connections."""
        try:
            return self.spec.network
        except Blocked:
            return False

    @property
    def loaded(self) -> Loaded:
        """One loaded reward for all rules that only score, as a trainer has one for all steps."""
        if self._loaded is None:
            self._loaded = Loaded(self)
        return self._loaded

    @cached_property
    def plain_answer(self) -> RewardOutput:
        """The answer to the batch as it stands; without it nothing can be compared."""
        try:
            return self.loaded.answer(self.batch)
        except Exception as error:
            raise Blocked("'length' has to hold first") from error

    @property
    def plain(self) -> list[float | None]:
        """Scores of the batch as it stands."""
        return list(self.plain_answer.scores)

    def scores(self, batch: RewardBatch) -> list[float | None]:
        """Scores of the shared reward on a batch of its own."""
        return self.loaded.scores(batch)

    def close(self) -> None:
        """Unload the shared reward."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None


def copy_of(batch: RewardBatch) -> RewardBatch:
    """The same samples in pictures and metadata of their own."""
    return replace(
        batch,
        images=[image.copy() for image in batch.images],
        references=[tuple(picture.copy() for picture in pictures) for pictures in batch.references],
        metadata=copy.deepcopy(list(batch.metadata)),
        shared={},
    )


def raised(error: BaseException) -> str:
    """An author's exception as a finding, with the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error_line(error)} ({last.filename}:{last.lineno})"


def difference(expected: Scores, found: Scores, tolerance: float, when: str, first: int = 0) -> str | None:
    """The first picture whose two scores are not the same; ``first`` is the number of the first one."""
    for row, (one, two) in enumerate(zip(expected, found, strict=True), first):
        same = one is two if one is None or two is None else abs(one - two) <= tolerance * max(1.0, abs(one))
        if not same:
            return f"picture {row} scores {one}, and {two} {when}"
    return None


def as_text(column: Any) -> str:
    """All that a reward could change, as text; pictures by their bytes."""
    if isinstance(column, Image.Image):
        return f"{column.mode} {column.size} {column.tobytes().hex()}"
    if isinstance(column, list | tuple):
        return f"[{', '.join(map(as_text, column))}]"
    return repr(column)
