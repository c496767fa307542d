"""What a composite found: the scores of one call by entry name, and statistics over them.

Shapes: N samples, R trained rewards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mentor_rewards.contract import NEEDS, RewardBatch, RewardEntry, RewardFailure, RewardSpec


@dataclass(frozen=True)
class CompositeScores:
    """What one scoring call found, by entry name; every list has N entries.

    Attributes:
        raw: scores in native units, None where missing.
        reasons: why a score is missing, None where it is there.
        applies: False where the sample lacks what the reward needs, or has a task that the entry does not name; such
            a None is not a failure.
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

    @classmethod
    def join(cls, parts: Sequence[CompositeScores]) -> CompositeScores:
        """Scores of neighbouring parts of a batch as those of the whole, but for ``failure``: a share of all of it."""
        first = parts[0]

        def joined(columns: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
            """Lists by name, end to end; one that a part lacks is None there."""
            names = dict.fromkeys(name for column in columns for name in column)
            blanks = [[None] * len(part) for part in parts]
            return {
                name: [x for column, blank in zip(columns, blanks, strict=True) for x in column.get(name, blank)]
                for name in names
            }

        return cls(
            raw=joined([part.raw for part in parts]),
            reasons=joined([part.reasons for part in parts]),
            applies=joined([part.applies for part in parts]),
            details={name: joined([part.details[name] for part in parts]) for name in first.details},
            seconds={name: sum(part.seconds[name] for part in parts) for name in first.seconds},
            entries=first.entries,
            specs=first.specs,
        )

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


def summary(scores: CompositeScores, group_ids: Sequence[int]) -> dict[str, RewardStats]:
    """Statistics of every reward, monitors included, by entry name."""
    return {name: _stats(name, scores, np.asarray(group_ids)) for name in scores.raw}


def columns_of(batch: RewardBatch) -> set[str]:
    """Columns with a value in at least one sample, as ``Composite.check_columns`` takes them."""
    keys = {f"metadata.{key}" for facts in batch.metadata for key, value in facts.items() if value is not None}
    return keys | {need for need in NEEDS if any(not batch.lacks(row, [need]) for row in range(len(batch)))}


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
