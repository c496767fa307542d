"""Several rewards scored together: micro-batches, masks and counts of missing scores, seconds, a failure rate.

A score is missing with a reason in three cases, and never becomes a number:
- the sample lacks what the reward declares as needed (``spec.needs``, ``spec.metadata``): the reward does not apply to
  it. Masked, not a failure.
- the reward returns None, NaN or infinity, or times out: a failure. Masked and counted; with ``on_missing: stop``, or
  above the failure rate, the call raises RewardFailure.
- an exception or a malformed answer is a fault of the reward: RewardError with the reward's name, always.

Synchronous rewards run one after the other on their device, devices beside each other; async rewards all at once.

Shapes: N samples, R trained rewards.
"""

from __future__ import annotations

import asyncio
import math
import numbers
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from mentor_rewards.contract import (
    AnyReward,
    AsyncReward,
    Reward,
    RewardBatch,
    RewardEntry,
    RewardError,
    RewardFailure,
    RewardOutput,
    RewardSpec,
    nearest,
)
from mentor_rewards.registry import build_reward

T = TypeVar("T")


@dataclass
class _Column:
    """The scores of one reward while they come in."""

    scores: list[float | None]
    reasons: list[str | None]
    applies: list[bool]
    details: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class CompositeScores:
    """What one scoring call found, by entry name; every list has N entries.

    Attributes:
        raw: scores in native units, None where missing.
        reasons: why a score is missing, None where it is there.
        applies: False where the sample lacks what the reward needs; such a None is not a failure.
        details: what a reward reported per picture, None where it did not score.
        seconds: spent inside each reward.
        failure: what ``score`` would have raised (with ``tolerate=True`` it is left here), else None.
    """

    raw: dict[str, list[float | None]]
    reasons: dict[str, list[str | None]]
    applies: dict[str, list[bool]]
    details: dict[str, dict[str, list[Any]]]
    seconds: dict[str, float]
    entries: Mapping[str, RewardEntry]
    specs: Mapping[str, RewardSpec]
    failure: RewardFailure | None = None

    def __len__(self) -> int:
        return len(next(iter(self.raw.values())))

    def scaled(self, name: str) -> np.ndarray:
        """The numbers [N] that enter aggregation: clip(scale * raw), float64, NaN where missing."""
        entry = self.entries[name]
        values = self.native(name) * entry.scale
        return values if entry.clip is None else np.clip(values, *entry.clip)

    def native(self, name: str) -> np.ndarray:
        """Raw scores [N] as float64, NaN where missing."""
        return np.array([math.nan if value is None else value for value in self.raw[name]], dtype=np.float64)

    def matrix(self) -> np.ndarray:
        """``scaled`` of all trained rewards, [N, R], in the order of ``Composite.trained``."""
        return np.stack([self.scaled(name) for name, entry in self.entries.items() if entry.role == "train"], axis=1)

    def failures(self, name: str) -> int:
        """How many scores are missing though the reward applies."""
        return sum(value is None and applies for value, applies in zip(self.raw[name], self.applies[name], strict=True))


@dataclass(frozen=True)
class RewardStats:
    """One reward over one batch; NaN where nothing was scored.

    Attributes:
        mean, std: of the native scores.
        group_std: mean over groups of the standard deviation within the group: the signal that GRPO sees.
        missing: share of the samples without a score, for whatever reason.
        failed: share of the samples to which the reward applies that it could not score.
        saturated: share of the scores at the entry's clip or at the bounds of the reward's range.
        seconds: spent inside the reward.
    """

    mean: float
    std: float
    group_std: float
    missing: float
    failed: float
    saturated: float
    seconds: float


class Composite:
    """Named rewards behind one ``score``.

    Args:
        entries: what the recipe says, by entry name; names are unique log keys.
        failure_rate: largest share of failed scores of one reward in one batch.
        base: the recipe's folder, for the relative paths in the entries.

    Raises:
        RewardError: an entry that cannot be used as given. Weights are read by ``load`` only.
    """

    def __init__(self, entries: Mapping[str, RewardEntry], failure_rate: float = 0.25, base: Path | None = None):
        if not entries:
            raise RewardError("rewards: expected at least one entry, found none")
        self.entries = dict(entries)
        self.failure_rate = failure_rate
        self.rewards: dict[str, AnyReward] = {
            name: build_reward(name, entry, base) for name, entry in self.entries.items()
        }
        for name, entry in self.entries.items():
            _check_entry(name, entry, self.rewards[name])
        self._loop: _Loop | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All entries."""
        return tuple(self.entries)

    @property
    def trained(self) -> tuple[str, ...]:
        """Entries that are optimised."""
        return tuple(name for name, entry in self.entries.items() if entry.role == "train")

    @property
    def monitors(self) -> tuple[str, ...]:
        """Entries that are scored and logged only."""
        return tuple(name for name, entry in self.entries.items() if entry.role == "monitor")

    @property
    def weights(self) -> np.ndarray:
        """Weights [R] of the trained rewards."""
        return np.array([self.entries[name].weight for name in self.trained], dtype=np.float64)

    @property
    def specs(self) -> dict[str, RewardSpec]:
        """What each reward declares; weights' checksums are filled in by ``load``."""
        return {name: reward.spec for name, reward in self.rewards.items()}

    def load(self) -> None:
        """Load all rewards; unloads again those already loaded when one fails."""
        try:
            for name, entry in self.entries.items():
                _guarded(name, "load", self.rewards[name].load, entry.device, entry.dtype)
        except BaseException:
            self.unload()
            raise
        if any(_is_async(reward) for reward in self.rewards.values()):
            self._loop = _Loop()

    def unload(self) -> None:
        """Free what ``load`` took."""
        for name, reward in self.rewards.items():
            _guarded(name, "unload", reward.unload)
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def __enter__(self) -> Composite:
        self.load()
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()

    def check_columns(self, available: Collection[str]) -> None:
        """Refuse, before any work, rewards that no sample could be scored with.

        Args:
            available: columns with a value in at least one sample, e.g. {"prompt", "metadata.style"}; see columns_of.
        """
        for name, reward in self.rewards.items():
            lacking = [column for column in reward.spec.columns if column not in available]
            if lacking:
                raise RewardError(
                    f"reward '{name}' needs {' and '.join(lacking)}; the prompts have "
                    f"{', '.join(sorted(available)) or 'nothing'} ({nearest(lacking[0], available)})"
                )

    def score(self, batch: RewardBatch, tolerate: bool = False) -> CompositeScores:
        """Score N samples with every reward.

        Args:
            tolerate: do not raise RewardFailure, leave it in the result (for evaluation, and for callers that first
                have to agree with other processes).

        Raises:
            RewardFailure: ``on_missing: stop`` with a failed score, or more failed scores than the failure rate.
            RewardError: a reward raised, or answered with something that is not N scores.
        """
        columns = {name: self._applicable(name, batch) for name in self.entries}
        waiting = {name for name, reward in self.rewards.items() if _is_async(reward)}
        pending: Future[None] | None = None
        if waiting:
            if self._loop is None:
                raise RewardError("Composite.score: call load() first, async rewards need its event loop")
            pending = self._loop.submit(self._score_async(sorted(waiting), batch, columns))
        try:
            self._score_by_device([name for name in self.entries if name not in waiting], batch, columns)
            if pending is not None:
                pending.result()
        except BaseException:
            if pending is not None:
                pending.cancel()
            raise
        scores = self._gather(columns)
        if scores.failure is not None and not tolerate:
            raise scores.failure
        return scores

    def _applicable(self, name: str, batch: RewardBatch) -> _Column:
        """An empty column, with the samples marked to which the reward does not apply."""
        needed = self.rewards[name].spec.columns
        lacking = [batch.lacks(row, needed) for row in range(len(batch))]
        reasons = [f"does not apply: no {' and no '.join(lack)}" if lack else None for lack in lacking]
        return _Column([None] * len(batch), reasons, [not lack for lack in lacking])

    def _score_by_device(self, names: Sequence[str], batch: RewardBatch, columns: Mapping[str, _Column]) -> None:
        by_device: dict[str, list[str]] = {}
        for name in names:
            by_device.setdefault(self.entries[name].device, []).append(name)

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

    def _score_one(self, name: str, batch: RewardBatch, column: _Column) -> None:
        reward = cast(Reward, self.rewards[name])
        for rows in self._micro_batches(name, column):
            part = batch.select(rows)
            start = time.perf_counter()
            output = _guarded(name, "score", reward.score, part)
            column.seconds += time.perf_counter() - start
            _fill(name, column, rows, output)

    async def _score_async(self, names: Sequence[str], batch: RewardBatch, columns: Mapping[str, _Column]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in names:
                    tasks.create_task(self._score_one_async(name, batch, columns[name]))
        except BaseExceptionGroup as group:  # the first fault has cancelled the others
            raise group.exceptions[0] from None

    async def _score_one_async(self, name: str, batch: RewardBatch, column: _Column) -> None:
        reward, timeout = cast(AsyncReward, self.rewards[name]), self.entries[name].timeout
        for rows in self._micro_batches(name, column):
            start = time.perf_counter()
            try:
                async with asyncio.timeout(timeout) as clock:
                    output = await reward.ascore(batch.select(rows))
            except Exception as error:
                if not clock.expired():
                    raise _named(name, "ascore", error) from error
                output = RewardOutput([None] * len(rows), [f"no answer within {timeout:g} s"] * len(rows))
            column.seconds += time.perf_counter() - start
            _fill(name, column, rows, output)

    def _micro_batches(self, name: str, column: _Column) -> list[list[int]]:
        rows = [row for row, applies in enumerate(column.applies) if applies]
        size = self.entries[name].batch
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _gather(self, columns: Mapping[str, _Column]) -> CompositeScores:
        return CompositeScores(
            raw={name: column.scores for name, column in columns.items()},
            reasons={name: column.reasons for name, column in columns.items()},
            applies={name: column.applies for name, column in columns.items()},
            details={name: column.details for name, column in columns.items()},
            seconds={name: column.seconds for name, column in columns.items()},
            entries=self.entries,
            specs=self.specs,
            failure=self._failure(columns),
        )

    def _failure(self, columns: Mapping[str, _Column]) -> RewardFailure | None:
        for name, column in columns.items():
            applicable = sum(column.applies)
            failed = [row for row, value in enumerate(column.scores) if value is None and column.applies[row]]
            stop = self.entries[name].on_missing == "stop"
            if failed and (stop or len(failed) > self.failure_rate * applicable):
                limit = "on_missing: stop" if stop else f"failure_rate: {self.failure_rate:g}"
                return RewardFailure(
                    f"reward '{name}': {len(failed)} of {applicable} pictures could not be scored ({limit}); "
                    f"first reason: {column.reasons[failed[0]]}"
                )
        return None


def columns_of(batch: RewardBatch) -> set[str]:
    """Columns with a value in at least one sample, as ``Composite.check_columns`` takes them."""
    keys = {f"metadata.{key}" for facts in batch.metadata for key, value in facts.items() if value is not None}
    plain = ("prompt", "reference", "subject")
    return keys | {column for column in plain if any(not batch.lacks(row, [column]) for row in range(len(batch)))}


def summary(scores: CompositeScores, group_ids: Sequence[int]) -> dict[str, RewardStats]:
    """Statistics of every reward, monitors included, by entry name."""
    return {name: _stats(name, scores, np.asarray(group_ids)) for name in scores.raw}


def _stats(name: str, scores: CompositeScores, group_ids_N: np.ndarray) -> RewardStats:
    values_N = scores.native(name)
    there = ~np.isnan(values_N)
    applicable = sum(scores.applies[name])
    spreads = [
        values_N[(group_ids_N == group) & there].std(ddof=1)
        for group in np.unique(group_ids_N)
        if ((group_ids_N == group) & there).sum() > 1
    ]
    return RewardStats(
        mean=float(values_N[there].mean()) if there.any() else math.nan,
        std=float(values_N[there].std(ddof=1)) if there.sum() > 1 else math.nan,
        group_std=float(np.mean(spreads)) if spreads else math.nan,
        missing=float(1 - there.mean()) if len(there) else math.nan,
        failed=scores.failures(name) / applicable if applicable else 0.0,
        saturated=_saturated(values_N[there], scores.entries[name], scores.specs[name]),
        seconds=scores.seconds[name],
    )


def _saturated(values: np.ndarray, entry: RewardEntry, spec: RewardSpec) -> float:
    if not len(values):
        return math.nan
    low, high = spec.range
    at_bound = (values <= (-math.inf if low is None else low)) | (values >= (math.inf if high is None else high))
    if entry.clip is not None:
        scaled = values * entry.scale
        at_bound |= (scaled <= entry.clip[0]) | (scaled >= entry.clip[1])
    return float(at_bound.mean())


def _check_entry(name: str, entry: RewardEntry, reward: AnyReward) -> None:
    if entry.timeout is not None and not _is_async(reward):
        raise RewardError(f"reward '{name}': timeout is for rewards with 'ascore'; {type(reward).__name__} has 'score'")
    if entry.role == "train" and not reward.spec.higher_is_better and entry.scale * entry.weight > 0:
        raise RewardError(
            f"reward '{name}': lower is better, but scale * weight is positive; give it a negative scale, "
            "or role: monitor"
        )


def _is_async(reward: AnyReward) -> bool:
    return asyncio.iscoroutinefunction(getattr(reward, "ascore", None))


def _guarded(name: str, what: str, call: Callable[..., T], *arguments: Any) -> T:
    try:
        return call(*arguments)
    except Exception as error:
        raise _named(name, what, error) from error


def _named(name: str, what: str, error: Exception) -> RewardError:
    """The error of a reward, as one line with its name."""
    text = str(error) if isinstance(error, RewardError) else f"{what} failed: {type(error).__name__}: {error}"
    return RewardError(text if text.startswith(f"reward '{name}'") else f"reward '{name}': {text}")


def _fill(name: str, column: _Column, rows: Sequence[int], output: RewardOutput) -> None:
    """Put one micro-batch's answer into the column, after checking its shape and types."""
    if not isinstance(output, RewardOutput):
        raise RewardError(f"reward '{name}': expected a RewardOutput, found {type(output).__name__}")
    lists: dict[str, list[Any]] = {
        "scores": output.scores,
        **({"reasons": output.reasons} if output.reasons else {}),
        **output.details,
    }
    for key, values in lists.items():
        if len(values) != len(rows):
            raise RewardError(f"reward '{name}': expected {len(rows)} {key}, one per picture, found {len(values)}")
    for position, row in enumerate(rows):
        reason = output.reasons[position] if output.reasons else None
        column.scores[row], column.reasons[row] = _checked_score(name, output.scores[position], reason)
    for key, values in output.details.items():
        whole = column.details.setdefault(key, [None] * len(column.scores))
        for row, value in zip(rows, values, strict=True):
            whole[row] = value


def _checked_score(name: str, value: Any, reason: str | None) -> tuple[float | None, str | None]:
    if value is None:
        return None, reason or "no reason given"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise RewardError(f"reward '{name}': expected scores of float or None, found {type(value).__name__}")
    if not math.isfinite(value):
        return None, f"not a number: {float(value)}" + (f" ({reason})" if reason else "")
    return float(value), None


class _Loop:
    """An event loop in a thread of its own: clients of async rewards keep their connections between calls."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
