"""Percentile bootstrap over items: how far a benchmark's mean would move with other items (Efron, 1979).

The item is the unit: its sampling seeds are averaged first, because pictures of one prompt are not independent. A
single item says nothing of others: its intervals are NaN.

Shapes: I items, S sampling seeds, B resamples, M metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
SEED = 20_250_713

Statistic = Callable[[np.ndarray], np.ndarray]


def resampled_means(values_IM: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Means of ``resamples`` draws of I items with replacement -> [B, M]. The same draw for all columns."""
    items = len(values_IM)
    if items == 1:
        return np.full((resamples, values_IM.shape[1]), np.nan)
    counts_BI = np.random.default_rng(seed).multinomial(items, np.full(items, 1.0 / items), size=resamples)
    return counts_BI @ values_IM / items


def interval(samples_B: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The central ``level`` of the resamples; NaN for a bound that lies between two infinite ones."""
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(samples_B, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(values_IM: np.ndarray, statistic: Statistic, resamples: int = RESAMPLES, seed: int = SEED) -> list[float]:
    """[value, low, high] of a statistic of column means, e.g. ``lambda m: m[..., 0] * m[..., 1]``; I > 0."""
    low, high = interval(statistic(resampled_means(values_IM, resamples, seed)))
    return [float(statistic(values_IM.mean(axis=0))), low, high]


def paired_change(
    before_IM: np.ndarray, after_IM: np.ndarray, statistic: Statistic, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[list[float], list[float]]:
    """[value, low, high] of after - before, and of (after - before) / before; the same items are drawn for both.

    The share is NaN or infinite where some draw of items has a ``before`` of zero: few items, or nothing to start from.
    """
    both = np.concatenate([before_IM, after_IM], axis=1)
    width = before_IM.shape[1]

    def difference(means: np.ndarray) -> np.ndarray:
        return statistic(means[..., width:]) - statistic(means[..., :width])

    def relative(means: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(difference(means) / statistic(means[..., :width]))

    return estimate(both, difference, resamples, seed), estimate(both, relative, resamples, seed)


def over_seeds(values_IS: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """Mean of each item over its seeds -> [I]."""
    return np.asarray(values_IS, dtype=np.float64).mean(axis=1)
