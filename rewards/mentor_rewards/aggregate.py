"""From the scores of a composite to one advantage per sample: the project's one statement of it, in numpy.

``normalize_then_sum`` (default; GDPO): every reward is standardised within its group, the weighted sum is whitened
over the batch. A reward whose raw values vary by .01 then counts as much as one that varies by 1. So does a saturated
reward, whose last thousandths are noise, unless it gets a *spread floor* f, in scaled units: its deviations are then
divided by max(std, f) + eps, so that below f it counts the less, the less it varies. f = 0 is GDPO's rule.
``sum_then_normalize`` (GRPO, Shao et al. 2024, section 4.1): the weighted sum is standardised within its group.

The numbers equal trl's (multi_objective_aggregation), but for four cases; ``for_trl`` makes values from which trl's
formulas give the numbers of this module in the first and the last of them:
- A missing score in ``sum_then_normalize`` gets the mean of that reward over its group; trl counts it as 0, which
  punishes the sample for a judge's failure.
- A group without spread contributes exactly 0; in trl, float32 rounding divided by eps may be left.
- In ``normalize_then_sum`` trl ignores the scale mode, and so does this module: there is none to pass.
- trl knows no spread floor.

A reward that does not apply to a task is missing in all of a group: it adds nothing there, and the sample's advantage
comes from its own rewards alone. Whitening and ``scale: batch`` are over the batch, that is over all tasks in it.

Shapes: N samples, R rewards. NaN means missing. Standard deviations have N-1 in the denominator, as trl's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Scale = Literal["group", "batch", "none"]
Aggregation = Literal["normalize_then_sum", "sum_then_normalize"]
EPS = 1e-4  # trl's
FLAT = 1e-6  # spread relative to the largest value (at least 1) below which a group counts as without spread


def advantages(
    values_NR: np.ndarray,
    weights_R: Sequence[float] | np.ndarray,
    group_ids_N: Sequence[int] | np.ndarray,
    aggregation: Aggregation = "normalize_then_sum",
    scale: Scale = "group",
    floors_R: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Advantages [N] by the named aggregation.

    ``scale`` is for ``sum_then_normalize`` only, ``floors_R`` (spread floors, default 0) for ``normalize_then_sum``.
    """
    if aggregation == "normalize_then_sum":
        return normalize_then_sum(values_NR, weights_R, group_ids_N, floors_R)
    return sum_then_normalize(values_NR, weights_R, group_ids_N, scale)


def normalize_then_sum(
    values_NR: np.ndarray,
    weights_R: Sequence[float] | np.ndarray,
    group_ids_N: Sequence[int] | np.ndarray,
    floors_R: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Advantages [N]: per reward z-score within the group, weighted sum, whitened over the batch.

    A missing score contributes 0, that is the group's mean. A sample without any score gets advantage 0 and does not
    enter the batch's mean and spread.
    """
    values_NR = np.asarray(values_NR, dtype=np.float64)
    floors_R = np.zeros(values_NR.shape[1]) if floors_R is None else np.asarray(floors_R, dtype=np.float64)
    z_NR = np.stack(
        [_z_in_groups(column, group_ids_N, floor) for column, floor in zip(values_NR.T, floors_R, strict=True)], axis=1
    )
    sums_N = np.nansum(z_NR * np.asarray(weights_R, dtype=np.float64), axis=1)
    sums_N[np.isnan(values_NR).all(axis=1)] = np.nan
    return np.nan_to_num(_standardise(sums_N, spread=_spread(sums_N)), nan=0.0)


def sum_then_normalize(
    values_NR: np.ndarray,
    weights_R: Sequence[float] | np.ndarray,
    group_ids_N: Sequence[int] | np.ndarray,
    scale: Scale = "group",
) -> np.ndarray:
    """Advantages [N]: weighted sum minus its group's mean, over the spread of the group, of the batch, or undivided."""
    sums_N = weighted_sum(fill_missing(values_NR, group_ids_N), weights_R)
    result_N = np.zeros_like(sums_N)
    batch_spread = _spread(sums_N)
    for rows in _groups(group_ids_N):
        spread = {"group": _spread(sums_N[rows]), "batch": batch_spread, "none": None}[scale]
        result_N[rows] = _standardise(sums_N[rows], spread)
    return np.nan_to_num(result_N, nan=0.0)


def weighted_sum(values_NR: np.ndarray, weights_R: Sequence[float] | np.ndarray) -> np.ndarray:
    """Sum of weight times value [N] over what is there; NaN for a sample without any score."""
    values_NR = np.asarray(values_NR, dtype=np.float64)
    sums_N = np.nansum(values_NR * np.asarray(weights_R, dtype=np.float64), axis=1)
    sums_N[np.isnan(values_NR).all(axis=1)] = np.nan
    return sums_N


def fill_missing(values_NR: np.ndarray, group_ids_N: Sequence[int] | np.ndarray) -> np.ndarray:
    """A copy in which a missing score has the mean of that reward over its group.

    Left as NaN: samples without any score, and rewards that scored nothing in a group (the same constant for all of
    the group, so of no effect once the group's mean is taken off).
    """
    filled_NR = np.array(values_NR, dtype=np.float64)
    silent_N = np.isnan(filled_NR).all(axis=1)
    for rows in _groups(group_ids_N):
        block = filled_NR[rows]
        for r in range(block.shape[1]):
            there = ~np.isnan(block[:, r])
            if there.any():
                block[~there, r] = block[there, r].mean()
        filled_NR[rows] = block
    filled_NR[silent_N] = np.nan
    return filled_NR


def for_trl(
    values_NR: np.ndarray,
    group_ids_N: Sequence[int] | np.ndarray,
    aggregation: Aggregation = "normalize_then_sum",
    floors_R: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Values [N, R] from which trl's formulas give the advantages of this module.

    ``sum_then_normalize``: ``fill_missing``. ``normalize_then_sum``: where a group's spread s is below the floor f, its
    deviations from the mean are shrunk by k = eps / (f + eps - s), since k / (k s + eps) = 1 / (f + eps).
    """
    if aggregation == "sum_then_normalize":
        return fill_missing(values_NR, group_ids_N)
    shrunk_NR = np.array(values_NR, dtype=np.float64)
    for r, floor in enumerate(() if floors_R is None else floors_R):
        for rows in _groups(group_ids_N):
            spread = _spread(shrunk_NR[rows, r])
            if spread < floor:
                # Around 0, since trl computes in float32. Its formula does not depend on the mean.
                centred = _standardise(shrunk_NR[rows, r], None)
                shrunk_NR[rows, r] = centred * EPS / (floor + EPS - spread)
    return shrunk_NR


def _z_in_groups(values_N: np.ndarray, group_ids_N: Sequence[int] | np.ndarray, floor: float) -> np.ndarray:
    z_N = np.full_like(values_N, np.nan)
    for rows in _groups(group_ids_N):
        spread = _spread(values_N[rows])
        z_N[rows] = _standardise(values_N[rows], max(spread, floor) if spread else 0.0)
    return z_N


def _groups(group_ids_N: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    ids = np.asarray(group_ids_N)
    return [np.flatnonzero(ids == group) for group in np.unique(ids)]


def _spread(values: np.ndarray) -> float:
    """Standard deviation of what is there; 0 for fewer than two values or values equal up to rounding."""
    there = values[~np.isnan(values)]
    if len(there) < 2 or np.ptp(there) <= FLAT * max(1.0, float(np.abs(there).max())):
        return 0.0
    return float(there.std(ddof=1))


def _standardise(values: np.ndarray, spread: float | None) -> np.ndarray:
    """(values - mean) / (spread + eps), 0 where the spread is 0, undivided where it is None; NaN stays."""
    there = ~np.isnan(values)
    if not there.any():
        return values.copy()
    centred = values - values[there].mean()
    if spread is None:
        return centred
    if spread == 0.0:
        return np.where(there, 0.0, np.nan)
    return centred / (spread + EPS)
