"""In which order rewards score, what they may take, and what counts as an answer.

Synchronous rewards run one after the other on their device, devices beside each other in threads; async rewards all at
once in one event loop. Each gets micro-batches of ``entry.batch`` samples, of those samples only that it applies to.

``timeout`` is in seconds per micro-batch. An async call is cancelled. A synchronous call cannot be: it is left to end
in a thread of its own, its late answer is thrown away, and until it has ended the reward is called no more. The scores
of all these micro-batches are missing, and count as failures.

Shapes: N samples.
"""

from __future__ import annotations

import asyncio
import math
import numbers
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from mentor_rewards.contract import (
    AnyReward,
    AsyncReward,
    Reward,
    RewardBatch,
    RewardEntry,
    RewardError,
    RewardOutput,
    error_line,
    misfit,
    one_line,
)
from mentor_rewards.event_loop import EventLoop

T = TypeVar("T")


@dataclass
class Column:
    """The N scores of one reward while they come in.

    Attributes:
        scores, reasons, details, seconds: as in CompositeScores.
        applies: which samples the reward gets to see.
    """

    scores: list[float | None]
    reasons: list[str | None]
    applies: list[bool]
    details: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def micro_batches(self, size: int) -> list[list[int]]:
        """Rows of the samples that the reward applies to, ``size`` at a time."""
        rows = [row for row, applies in enumerate(self.applies) if applies]
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def fill(self, name: str, rows: Sequence[int], output: RewardOutput) -> None:
        """Put one micro-batch's answer in its place.

        Raises:
            RewardError: an answer of another length or type.
        """
        problem = misfit(output, len(rows))
        if problem is not None:
            raise RewardError(f"reward '{name}': {problem}")
        for position, row in enumerate(rows):
            reason = output.reasons[position] if output.reasons else None
            self.scores[row], self.reasons[row] = _checked_score(name, output.scores[position], reason)
        for key, values in output.details.items():
            whole = self.details.setdefault(key, [None] * len(self.scores))
            for row, value in zip(rows, values, strict=True):
                whole[row] = value


class Schedule:
    """Calls loaded rewards; ``open`` and ``close`` it around their use.

    Args:
        rewards, entries: by entry name.
    """

    def __init__(self, rewards: Mapping[str, AnyReward], entries: Mapping[str, RewardEntry]) -> None:
        self.rewards, self.entries = rewards, entries
        self._waiting = sorted(name for name, reward in rewards.items() if is_async(reward))
        self._limited = {
            name: _LimitedCalls(entries[name].timeout)
            for name in rewards
            if entries[name].timeout is not None and name not in self._waiting
        }
        self._loop: EventLoop | None = None

    def open(self) -> None:
        """Start the event loop that async rewards live in."""
        if self._waiting and self._loop is None:
            self._loop = EventLoop()

    def close(self) -> None:
        """Stop the event loop."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def busy(self, name: str) -> bool:
        """Whether a call of this reward that ran past its timeout has not ended yet."""
        return name in self._limited and self._limited[name].busy

    def score(self, batch: RewardBatch, columns: Mapping[str, Column]) -> None:
        """Fill the columns of all rewards.

        Raises:
            RewardError: a reward raised, or answered with something that is not N scores; the others are cancelled.
        """
        pending: Future[None] | None = None
        if self._waiting:
            if self._loop is None:
                raise RewardError("Composite.score: call load() first, async rewards need its event loop")
            pending = self._loop.submit(self._score_async(batch, columns))
        try:
            self._score_by_device(batch, columns)
            if pending is not None:
                pending.result()
        except BaseException:
            if pending is not None:
                pending.cancel()
            raise

    def _score_by_device(self, batch: RewardBatch, columns: Mapping[str, Column]) -> None:
        by_device: dict[str, list[str]] = {}
        for name, entry in self.entries.items():
            if name not in self._waiting:
                by_device.setdefault(entry.device, []).append(name)

        def one_device(mine: list[str]) -> None:
            for name in mine:
                self._score_one(name, batch, columns[name])

        if len(by_device) <= 1:
            for mine in by_device.values():
                one_device(mine)
            return
        with ThreadPoolExecutor(len(by_device), thread_name_prefix="reward") as pool:
            for job in [pool.submit(one_device, mine) for mine in by_device.values()]:
                job.result()

    def _score_one(self, name: str, batch: RewardBatch, column: Column) -> None:
        score: Callable[[RewardBatch], RewardOutput] = cast(Reward, self.rewards[name]).score
        if name in self._limited:
            score = self._limited[name].of(score)
        for rows in column.micro_batches(self.entries[name].batch):
            part = batch.select(rows)
            start = time.perf_counter()
            output = guarded(name, "score", score, part)
            column.seconds += time.perf_counter() - start
            column.fill(name, rows, output)

    async def _score_async(self, batch: RewardBatch, columns: Mapping[str, Column]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in self._waiting:
                    tasks.create_task(self._score_one_async(name, batch, columns[name]))
        except BaseExceptionGroup as group:  # the first fault has cancelled the others
            raise group.exceptions[0] from None

    async def _score_one_async(self, name: str, batch: RewardBatch, column: Column) -> None:
        reward, timeout = cast(AsyncReward, self.rewards[name]), self.entries[name].timeout
        for rows in column.micro_batches(self.entries[name].batch):
            start = time.perf_counter()
            try:
                async with asyncio.timeout(timeout) as clock:
                    output = await reward.ascore(batch.select(rows))
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                if not clock.expired():  # also of a reward that cancels its own work, which a task group would hide
                    raise _named(name, "ascore", error) from error
                output = RewardOutput.missing(len(rows), f"no answer within {timeout:g} s")
            column.seconds += time.perf_counter() - start
            column.fill(name, rows, output)


def is_async(reward: AnyReward) -> bool:
    """Whether the reward scores in ``ascore``."""
    return asyncio.iscoroutinefunction(getattr(reward, "ascore", None))


def guarded(name: str, what: str, call: Callable[..., T], *arguments: Any) -> T:
    """Call a reward's own code; whatever it raises becomes a RewardError with the reward's name."""
    try:
        return call(*arguments)
    except Exception as error:
        raise _named(name, what, error) from error


def _is_cancelled() -> bool:
    """Whether somebody asked the running task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _named(name: str, what: str, error: BaseException) -> RewardError:
    text = one_line(error) if isinstance(error, RewardError) else f"{what} failed: {error_line(error)}"
    return RewardError(text if text.startswith(f"reward '{name}'") else f"reward '{name}': {text}")


def _checked_score(name: str, value: Any, reason: str | None) -> tuple[float | None, str | None]:
    if value is None:
        return None, one_line(reason) if reason else "no reason given"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise RewardError(f"reward '{name}': expected scores of float or None, found {type(value).__name__}")
    if not math.isfinite(value):
        return None, f"not a number: {float(value)}" + (f" ({reason})" if reason else "")
    return float(value), None


class _LimitedCalls:
    """Synchronous calls of one reward that are waited for no longer than ``timeout`` seconds; never two at a time."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def of(self, score: Callable[[RewardBatch], RewardOutput]) -> Callable[[RewardBatch], RewardOutput]:
        """The same function, with a limit."""

        def limited(batch: RewardBatch) -> RewardOutput:
            if self.busy:
                return RewardOutput.missing(len(batch), f"still busy with a call that ran past {self.timeout:g} s")
            answer: Future[RewardOutput] = Future()
            # A daemon: the pool's threads are joined when the process ends, and this one may never end.
            self._thread = threading.Thread(target=_settle, args=(answer, score, batch), name="reward", daemon=True)
            self._thread.start()
            self._thread.join(self.timeout)
            if not answer.done():
                return RewardOutput.missing(len(batch), f"no answer within {self.timeout:g} s")
            return answer.result()

        return limited


def _settle(answer: Future[RewardOutput], score: Callable[[RewardBatch], RewardOutput], batch: RewardBatch) -> None:
    try:
        answer.set_result(score(batch))
    except BaseException as error:
        answer.set_exception(error)
