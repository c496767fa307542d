"""Several rewards scored together: which samples each applies to, masks and counts of missing scores, a failure rate.

A score is missing with a reason in three cases, and never becomes a number:
- the sample lacks what the reward declares as needed (``spec.needs``, ``spec.metadata``), or its task is not one of
  the entry's ``tasks``: the reward does not apply to it. Masked, not a failure.
- the reward returns None, NaN or infinity, or times out: a failure. Masked and counted; with ``on_missing: stop``, or
  above the failure rate, the call raises RewardFailure.
- an exception or a malformed answer is a fault of the reward: RewardError with the reward's name, always.

A sample's task stands in ``metadata["task"]``. So a mixture can reward each task with a set of its own, e.g. CLIP-I on
subject-driven prompts only (MENTOR, section 4), and a sample is aggregated from its own rewards alone.

reward_schedule.py says in which order rewards score, reward_scores.py what comes out.

Shapes: N samples, R trained rewards.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mentor_rewards.contract import (
    AnyReward,
    FromFiles,
    RewardBatch,
    RewardEntry,
    RewardError,
    RewardFailure,
    RewardSpec,
    Served,
    Stateful,
)
from mentor_rewards.registry import build_reward
from mentor_rewards.reward_schedule import Column, Schedule, guarded
from mentor_rewards.reward_scores import CompositeScores, RewardStats, columns_of, summary

__all__ = ["Composite", "CompositeScores", "RewardStats", "columns_of", "summary"]

logger = logging.getLogger(__name__)


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
            _check_direction(name, entry, self.rewards[name].spec)
        self._schedule = Schedule(self.rewards, self.entries)

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
    def spread_floors(self) -> np.ndarray:
        """Spread floors [R] of the trained rewards; see aggregate.py."""
        return np.array([self.entries[name].spread_floor for name in self.trained], dtype=np.float64)

    @property
    def specs(self) -> dict[str, RewardSpec]:
        """What each reward declares; weights' checksums are filled in by ``load``."""
        return {name: reward.spec for name, reward in self.rewards.items()}

    def load(self) -> None:
        """Load all rewards; unloads again those already loaded when one fails."""
        try:
            for name, entry in self.entries.items():
                guarded(name, "load", self.rewards[name].load, entry.device, entry.dtype)
                _check_direction(name, entry, self.rewards[name].spec)  # a remote reward may have learnt its spec here
        except BaseException:
            try:
                self.unload()
            except RewardError as error:  # what kept it from loading is what has to be mended
                logger.warning("%s", error)
            raise
        self._schedule.open()

    def check_files(self) -> None:
        """Refuse, before any work, rewards whose weights are not there; see FromFiles."""
        for name, reward in self.rewards.items():
            if isinstance(reward, FromFiles):
                guarded(name, "check_files", reward.check_files)

    def check_servers(self) -> None:
        """Refuse, before any work, rewards whose server does not answer; see Served."""
        for name, reward in self.rewards.items():
            if isinstance(reward, Served):
                guarded(name, "check_server", reward.check_server)
                _check_direction(name, self.entries[name], reward.spec)  # a remote reward knows its spec now

    def unload(self) -> None:
        """Free what ``load`` took. A reward still in a call that ran past its timeout keeps its weights."""
        with ExitStack() as stack:  # all of them, whichever fails
            stack.callback(self._schedule.close)
            for name, reward in reversed(self.rewards.items()):
                if self._schedule.busy(name):
                    logger.warning("reward '%s': not unloaded, a call that ran past its timeout is still running", name)
                else:
                    stack.callback(guarded, name, "unload", reward.unload)

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
                has = ", ".join(sorted(available)) or "nothing"
                raise RewardError(f"reward '{name}' needs {' and '.join(lacking)}; the prompts have {has}")

    def check_tasks(self, batch: RewardBatch) -> None:
        """Refuse, before any work, a task that no trained reward applies to: its samples would teach nothing.

        Args:
            batch: prompts of every task, with or without their pictures.
        """
        reasons: dict[str, dict[str, str | None]] = {}
        for name in self.trained:
            column = self.applicable(name, batch)
            for facts, reason in zip(batch.metadata, column.reasons, strict=True):
                found = reasons.setdefault(str(facts.get("task")), {})
                found[name] = found.get(name, reason) and reason  # None as soon as one sample can be scored
        for task, by_name in reasons.items():
            if all(by_name.values()):
                why = "; ".join(f"'{name}' {reason}" for name, reason in by_name.items())
                raise RewardError(f"task '{task}': expected a trained reward that applies to it, found none: {why}")

    def score(self, batch: RewardBatch, tolerate: bool = False) -> CompositeScores:
        """Score N samples with every reward.

        Args:
            tolerate: do not raise RewardFailure, leave it in the result (for evaluation, and for callers that first
                have to agree with other processes).

        Raises:
            RewardFailure: ``on_missing: stop`` with a failed score, or more failed scores than the failure rate.
            RewardError: a reward raised, or answered with something that is not N scores.
        """
        columns = {name: self.applicable(name, batch) for name in self.entries}
        self._schedule.score(batch, columns)
        scores = CompositeScores(
            raw={name: column.scores for name, column in columns.items()},
            reasons={name: column.reasons for name, column in columns.items()},
            applies={name: column.applies for name, column in columns.items()},
            details={name: column.details for name, column in columns.items()},
            seconds={name: column.seconds for name, column in columns.items()},
            entries=self.entries,
            specs=self.specs,
        )
        scores = self.judged(scores)
        if scores.failure is not None and not tolerate:
            raise scores.failure
        return scores

    def join(self, parts: Sequence[CompositeScores]) -> CompositeScores:
        """What ``score(tolerate=True)`` found in neighbouring parts of a batch, as what it finds in the whole.

        The failure rate is of the whole; a part alone may be above it.
        """
        return self.judged(CompositeScores.join(parts))

    def judged(self, scores: CompositeScores) -> CompositeScores:
        """The same scores with the failure that they amount to, a reason of which may stand in another process."""
        return replace(scores, failure=self._failure(scores))

    def save_state(self) -> dict[str, Any]:
        """What rewards remember between calls, by entry; empty where none does. See Stateful."""
        return {
            name: dict(reward.save_state()) for name, reward in self.rewards.items() if isinstance(reward, Stateful)
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Give each reward the memory that ``save_state`` took.

        Raises:
            RewardError: memory is missing, or there is some for a reward that has none.
        """
        stateful = {name: reward for name, reward in self.rewards.items() if isinstance(reward, Stateful)}
        for name in stateful.keys() ^ state.keys():
            found = "none" if name in stateful else "some"
            raise RewardError(
                f"reward '{name}': expected {'its memory' if name in stateful else 'no memory'} in the "
                f"saved state, found {found}; the state is of another version or number of processes"
            )
        for name, reward in stateful.items():
            guarded(name, "load_state", reward.load_state, state[name])

    def applicable(self, name: str, batch: RewardBatch) -> Column:
        """An empty column, with the samples marked to which the reward does not apply."""
        needed, tasks = self.rewards[name].spec.columns, self.entries[name].tasks
        reasons: list[str | None] = []
        for row, facts in enumerate(batch.metadata):
            lacking = batch.lacks(row, needed)
            if tasks is not None and facts.get("task") not in tasks:
                reasons.append(f"does not apply: task '{facts.get('task')}' is not in tasks: [{', '.join(tasks)}]")
            else:
                reasons.append(f"does not apply: no {' and no '.join(lacking)}" if lacking else None)
        return Column([None] * len(batch), reasons, [reason is None for reason in reasons])

    def _failure(self, scores: CompositeScores) -> RewardFailure | None:
        for name, values in scores.raw.items():
            applies = scores.applies[name]
            applicable = sum(applies)
            failed = [row for row, value in enumerate(values) if value is None and applies[row]]
            stop = self.entries[name].on_missing == "stop"
            if failed and (stop or len(failed) > self.failure_rate * applicable):
                limit = "on_missing: stop" if stop else f"failure_rate: {self.failure_rate:g}"
                reasons = (scores.reasons[name][row] for row in failed)
                return RewardFailure(
                    f"reward '{name}': {len(failed)} of {applicable} pictures could not be scored ({limit}); "
                    f"first reason: {next(filter(None, reasons), 'another process says it')}"
                )
        return None


def _check_direction(name: str, entry: RewardEntry, spec: RewardSpec) -> None:
    if entry.role == "train" and not spec.higher_is_better and entry.scale * entry.weight > 0:
        raise RewardError(
            f"reward '{name}': lower is better, but scale * weight is positive; give it a negative scale, "
            "or role: monitor"
        )
