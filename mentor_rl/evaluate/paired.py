"""Two policies on the same items: the scores behind a result's rows, and their difference with an interval.

As everywhere here the item is the unit, its sampling seeds averaged first (bootstrap.py). CP·PF and CP/PF are taken of
the means, as in MENTOR, table 1.

Shapes: I items, M columns, S training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mentor_base.errors import UserError, nearest
from mentor_rl.evaluate import bootstrap
from mentor_rl.evaluate.result import PART, Result

PRODUCT, RATIO, OWN_PRODUCT = "CP·PF", "CP/PF", "CP·PF per picture"


@dataclass(frozen=True)
class Scores:
    """What one policy got on each item.

    Attributes:
        items: what was asked, I different texts.
        columns: metric -> [I], NaN where there is no score.
    """

    items: tuple[str, ...]
    columns: Mapping[str, np.ndarray]

    def metrics(self) -> list[str]:
        """The columns, and what is computed of two of them."""
        made = [PRODUCT, RATIO] if {"CP", "PF"} <= self.columns.keys() else []
        names = [name for name in self.columns if name in ("CP", "PF")] + made
        return names + [name for name in self.columns if name not in names]

    def table(self, metric: str) -> np.ndarray:
        """The columns that a metric is made of -> [I, M]."""
        names = ("CP", "PF") if metric in (PRODUCT, RATIO) else (metric,)
        return np.stack([self.columns[name] for name in names], axis=1)

    def value(self, metric: str) -> float:
        """The metric over all items that have a score; NaN where none has."""
        there_IM = _scored(self.table(metric))
        return float(statistic(metric)(there_IM.mean(axis=0))) if len(there_IM) else math.nan

    def estimate(self, metric: str) -> list[float] | None:
        """[value, low, high] over the items that have a score; None where none has."""
        there_IM = _scored(self.table(metric))
        return bootstrap.estimate(there_IM, statistic(metric)) if len(there_IM) else None


def statistic(metric: str) -> bootstrap.Statistic:
    """What a metric makes of the means of its columns."""
    if metric == PRODUCT:
        return lambda means: means[..., 0] * means[..., 1]
    if metric == RATIO:
        return lambda means: means[..., 0] / np.maximum(means[..., 1], 1e-9)
    return lambda means: means[..., 0]


def rows_of(result: Result, policy: str) -> dict[str, str]:
    """Part ("" for the whole, a split, a category) -> the result's row for this policy."""
    rows = {}
    for name in result.metrics:
        row, _, part = name.partition(PART)
        if row == policy:
            rows[part] = name
    return rows


def policies_of(result: Result) -> list[str]:
    """The policies of a result: those that it lists, or all of its rows."""
    listed = result.details.get("policies") or result.details.get("rows")
    return list(listed) if listed else list(dict.fromkeys(name.partition(PART)[0] for name in result.metrics))


def policy_of(result: Result, name: str | None, where: str) -> str:
    """``name``, or the only policy.

    Raises:
        UserError: an unknown name, or several to choose from.
    """
    known = policies_of(result)
    if name is None and len(known) == 1:
        return known[0]
    if name is None:
        raise UserError(f"{where}: expected one policy, found {', '.join(known)}; name one (--a, --b)")
    if name not in known:
        raise UserError(f"{where}: unknown policy '{name}'; {nearest(name, known)}")
    return name


def scores_of(result: Result, policy: str) -> Scores | None:
    """The items of a policy, all splits together; None where the result kept none."""
    parts = _parts_of(result, policy)
    return _together(parts) if parts else None


def pairs_of(result: Result, before: str, after: str) -> dict[str, tuple[Scores, Scores]]:
    """Part -> the items of two policies of one result; "" for all together, last, where there are several parts.

    Raises:
        UserError: an unknown policy, or one that was measured on other items.
    """
    first, second = (_parts_of(result, policy_of(result, name, result.benchmark)) for name in (before, after))
    if {part: each.items for part, each in first.items()} != {part: each.items for part, each in second.items()}:
        raise UserError(f"{result.benchmark}: expected the same items for '{before}' and '{after}', found others")
    pairs = {part: (first[part], second[part]) for part in first}
    if len(pairs) > 1 and "" not in pairs:
        pairs[""] = _together(first), _together(second)
    return pairs


def _parts_of(result: Result, policy: str) -> dict[str, Scores]:
    kept = {part: result.per_item.get(row) for part, row in rows_of(result, policy).items()}
    return {part: _one_split(columns) for part, columns in kept.items() if columns}


def _together(parts: Mapping[str, Scores]) -> Scores:
    """The whole where there is one, else all parts one after the other."""
    if "" in parts:
        return parts[""]
    shared = [name for name in next(iter(parts.values())).columns if all(name in p.columns for p in parts.values())]
    items = tuple(f"{part}: {item}" for part, each in parts.items() for item in each.items)
    return Scores(items, {name: np.concatenate([each.columns[name] for each in parts.values()]) for name in shared})


def _one_split(part: Mapping[str, Sequence[Any]]) -> Scores:
    columns = {}
    for name, values in part.items():
        if name not in ("item", "seed") and all(value is None or isinstance(value, (int, float)) for value in values):
            numbers = np.array([math.nan if value is None else float(value) for value in values])
            columns[OWN_PRODUCT if name == PRODUCT else name] = numbers
    count = len(next(iter(part.values()), ()))
    items = tuple(map(str, part.get("item", range(count))))
    return _seeds_averaged(items, columns) if "seed" in part else Scores(items, columns)


def _seeds_averaged(items: Sequence[str], columns: Mapping[str, np.ndarray]) -> Scores:
    """One row per item, of a table that has one per item and seed."""
    order = {item: place for place, item in enumerate(dict.fromkeys(items))}
    places, means = np.array([order[item] for item in items], dtype=np.int64), {}
    for name, values in columns.items():
        there = np.isfinite(values)
        counts = np.bincount(places[there], minlength=len(order))
        sums = np.bincount(places[there], values[there], minlength=len(order))
        means[name] = np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)
    return Scores(tuple(order), means)


def change(before: Scores, after: Scores, metric: str) -> tuple[list[float], list[float]] | None:
    """[value, low, high] of after - before and of the same as a share of before; items without a score are left out.

    Paired: both have to be over the same items. None where no item has both scores.
    """
    both_IM = np.concatenate([before.table(metric), after.table(metric)], axis=1)
    there_IM = _scored(both_IM)
    if not len(there_IM):
        return None
    width = there_IM.shape[1] // 2
    return bootstrap.paired_change(there_IM[:, :width], there_IM[:, width:], statistic(metric))


def change_of_strangers(before: Scores, after: Scores, metric: str) -> list[float] | None:
    """[value, low, high] of after - before, the items of each drawn for themselves."""
    parts = [_scored(each.table(metric)) for each in (before, after)]
    if not all(map(len, parts)):
        return None
    made = statistic(metric)
    first_B, second_B = (
        made(bootstrap.resampled_means(part, seed=bootstrap.SEED + place)) for place, part in enumerate(parts)
    )
    value = float(made(parts[1].mean(axis=0)) - made(parts[0].mean(axis=0)))
    return [value, *bootstrap.interval(second_B - first_B)]


def averaged(parts: Sequence[Scores]) -> Scores:
    """Training seeds of one method as one: the mean of each item over them.

    Raises:
        UserError: different items.
    """
    if any(part.items != parts[0].items for part in parts):
        raise UserError("expected the same items for every seed, found different ones")
    shared = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    return Scores(parts[0].items, {name: np.mean([part.columns[name] for part in parts], axis=0) for name in shared})


def over_training_seeds(values_S: Sequence[float]) -> list[float] | None:
    """[mean, low, high] of Student's 95 % interval over seeds; None for fewer than two."""
    there = np.array([value for value in values_S if math.isfinite(value)])
    if len(there) < 2:
        return None
    half = student(len(there) - 1) * float(there.std(ddof=1)) / math.sqrt(len(there))
    mean = float(there.mean())
    return [mean, mean - half, mean + half]


def student(freedom: int, level: float = bootstrap.LEVEL) -> float:
    """The quantile of Student's t that leaves (1 - level) / 2 above it.

    With t = sqrt(f) tan(a) the density over the angle a is proportional to cos(a) ** (f - 1).
    """
    angle = np.linspace(0.0, math.pi / 2, 200_001)
    weight = np.cos(angle) ** (freedom - 1)
    share = np.concatenate([[0.0], np.cumsum((weight[1:] + weight[:-1]) / 2)])
    return float(math.sqrt(freedom) * math.tan(np.interp(level, share / share[-1], angle)))


def verdict(items: Sequence[float] | None, seeds: Sequence[float] | None = None) -> str:
    """What a change's interval over items, and over training seeds where there are several, lets one say.

    "up" and "down": every interval that there is leaves zero out. "within noise": that over items does not.
    "up, seeds differ": the items agree, the seeds do not. "no interval": a single item, which says nothing of others.
    """
    if items is None:
        return "no items to compare"
    if not all(map(math.isfinite, items)):
        return "no interval"
    if items[1] <= 0.0 <= items[2]:
        return "within noise"
    way = "up" if items[0] > 0 else "down"
    return way if seeds is None or not seeds[1] <= 0.0 <= seeds[2] else f"{way}, seeds differ"


def _scored(table_IM: np.ndarray) -> np.ndarray:
    return table_IM[np.isfinite(table_IM).all(axis=1)]
