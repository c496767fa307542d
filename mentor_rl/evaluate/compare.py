"""Two results, or two GRPO runs, next to each other: every metric with its interval, and whether the change is noise.

Paired over items where both are over the same ones. Otherwise they are not compared, unless asked for: then the items
of each are drawn for themselves, and the interval is wider.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentor_base.errors import UserError
from mentor_base.runlog import MARKER, RunFolder
from mentor_rl.evaluate.fixed_scores import fixed_scores
from mentor_rl.evaluate.paired import (
    Scores,
    change,
    change_of_strangers,
    policies_of,
    policy_of,
    rows_of,
    scores_of,
    verdict,
)
from mentor_rl.evaluate.result import Result, Value, result_files

FEW = 30  # items; the bootstrap's interval of a mean is too narrow below: about 93 % of 16 items, 86 % of 6


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name: for the table's head.
        where: for errors.
        facts: what has to be the same on both sides, by name.
        scores: per item; None where only means are known.
        means: metric -> value, for what has no items.
    """

    name: str
    where: str
    facts: dict[str, Any]
    scores: Scores | None
    means: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One metric: [value, low, high] of both sides, None where it has no interval, of the change and of its share."""

    metric: str
    before: list[float]
    after: list[float]
    change: list[float] | None
    relative: list[float] | None
    verdict: str


def read_side(path: Path, policy: str | None) -> Side:
    """A result (.json), a folder that holds one, or a GRPO run.

    Raises:
        UserError: none of these, or several results or policies to choose from.
    """
    files = [path] if path.suffix == ".json" else result_files(path)
    kind = RunFolder(path).recipe().get("kind") if (path / MARKER).exists() else None
    if kind == "ablate":
        raise UserError(
            f"{path}: this is an ablation, which compares its arms itself: {path / 'results' / 'ablation.md'}"
        )
    if len(files) > 1:
        raise UserError(f"{path}: expected one result, found {', '.join(file.name for file in files)}; name the file")
    if files:
        return _side_of_result(Result.read(files[0]), files[0], policy)
    if kind == "grpo":
        if policy is not None:
            raise UserError(f"{path}: a GRPO run has one policy; found the name '{policy}' for it")
        step, scores = fixed_scores(path)
        return Side(f"{path.name}, step {step}", str(path), {"benchmark": "fixed prompts of GRPO"}, scores, {})
    raise UserError(f"{path}: expected a benchmark result (.json), a folder with results/ or a GRPO run, found none")


def _side_of_result(result: Result, file: Path, policy: str | None) -> Side:
    name = policy_of(result, policy, str(file))
    facts = {
        "benchmark": result.benchmark,
        "judge": result.judge,
        "stand_in": result.stand_in,
        "prompts": result.prompts,
    }
    rows = rows_of(result, name)
    whole = result.metrics[rows[""]] if "" in rows else {}
    means = {key: number for key, value in whole.items() if (number := _number(value)) is not None}
    several = len(policies_of(result)) > 1
    held = file.parent.parent.name if file.parent.name == "results" else file.stem
    return Side(name if several else f"{held}: {name}", str(file), facts, scores_of(result, name), means)


def compare_sides(before: Side, after: Side, unpaired: bool = False) -> tuple[list[Row], str]:
    """Every metric that both have, and how they were compared.

    Args:
        unpaired: different items are no error.

    Raises:
        UserError: another benchmark, judge or stand-in; different items; no metric in common.
    """
    for name, value in before.facts.items():
        if after.facts.get(name) != value:
            raise UserError(
                f"{after.where}: {name}: expected that of {before.where}, '{value}', found '{after.facts.get(name)}': "
                "their numbers cannot be compared"
            )
    if before.scores is None or after.scores is None:
        return _rows_of_means(before, after), "means alone: without scores of the items nothing says what is noise"
    same = before.scores.items == after.scores.items
    if not same and not unpaired:
        raise UserError(
            f"{after.where}: items: expected the {len(before.scores.items)} of {before.where}, found "
            f"{_difference(before.scores, after.scores)}; --unpaired compares them all the same"
        )
    rows = [_row(metric, before.scores, after.scores, not unpaired) for metric in _shared(before, after)]
    how = "unpaired:" if unpaired else "paired over"
    counts = [len(before.scores.items), *([] if same else [len(after.scores.items)])]
    few = ", of so few items more" if min(counts) < FEW else ""
    told = f"{how} {' and '.join(map(str, counts))} items, 95 % bootstrap"
    return rows, f"{told}; of 20 metrics that do not differ, one will seem to{few}"


def _row(metric: str, before: Scores, after: Scores, paired: bool) -> Row:
    values = [side.estimate(metric) or [math.nan] * 3 for side in (before, after)]
    if paired:
        changed = change(before, after, metric)
        difference, relative = changed if changed is not None else (None, None)
    else:
        difference, relative = change_of_strangers(before, after, metric), None
    return Row(metric, values[0], values[1], difference, relative, verdict(difference))


def _shared(before: Side, after: Side) -> list[str]:
    assert before.scores is not None and after.scores is not None, "the caller has looked"  # noqa: PT018
    shared = [metric for metric in before.scores.metrics() if metric in after.scores.metrics()]
    if not shared:
        ours, theirs = (", ".join(side.scores.metrics()) for side in (before, after) if side.scores is not None)
        raise UserError(f"{after.where}: expected a metric of {before.where} ({ours}), found {theirs or 'none'}")
    return shared


def _rows_of_means(before: Side, after: Side) -> list[Row]:
    shared = [metric for metric in before.means if metric in after.means]
    if not shared:
        raise UserError(f"{after.where}: expected a metric of {before.where}, found none in common")
    nan = math.nan
    return [
        Row(
            metric,
            [before.means[metric], nan, nan],
            [after.means[metric], nan, nan],
            [after.means[metric] - before.means[metric], nan, nan],
            None,
            "no interval",
        )
        for metric in shared
    ]


def _difference(before: Scores, after: Scores) -> str:
    first, second = set(before.items), set(after.items)
    if first == second:
        return "the same in another order"
    return f"{len(after.items)} with {len(second - first)} others (first: {min(second - first, default='none')[:60]})"


def _number(value: Value) -> float | None:
    if isinstance(value, list):
        return value[0]
    return float(value) if isinstance(value, (int, float)) else None
