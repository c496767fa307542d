"""Agreement of raters, and of raters with a judge.

Krippendorff's alpha is 1 - observed / expected disagreement, from the coincidences of ratings within units; units with
fewer than two ratings say nothing. The distance between two ratings makes the level of measurement: nominal (same or
not), interval (squared difference), ordinal (squared number of ratings between them). For scores from 0 to 4 ordinal is
the one to report. MENTOR does not say which one its numbers are; DreamBench++'s code uses interval.

Consistency: the share of pictures whose judge's score is what most raters say. Most is the most frequent rating, given
at least twice and more often than any other; without one it is the (lower) median, and the picture counts as a split.

Source: Krippendorff, Content Analysis (2004), chapter 11; the intervals resample units, as in bootstrap.py.

Shapes: U units, R raters, V distinct ratings, B resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mentor_rl.evaluate.bootstrap import RESAMPLES, SEED, interval

Level = Literal["ordinal", "interval", "nominal"]
LEVELS: tuple[Level, ...] = ("ordinal", "interval", "nominal")


@dataclass(frozen=True)
class Alpha:
    """Alpha with its 95 % interval; NaN where it is not defined (no two ratings of one unit, or all ratings equal)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Consistency:
    """Raters against a judge, as shares of pictures.

    Attributes:
        exact: same score.
        near: at most one apart.
        exact_without_splits: same score, of the pictures that most raters agree on; NaN without any.
        splits: pictures without a most frequent rating.
        pictures: that have both.
    """

    exact: float
    near: float
    exact_without_splits: float
    splits: int
    pictures: int


def krippendorff(
    ratings_UR: np.ndarray, level: Level = "ordinal", resamples: int = RESAMPLES, seed: int = SEED
) -> Alpha:
    """Alpha of ratings, NaN where a rater gave none.

    Args:
        resamples: for the interval; 0: none.
    """
    values_V = np.unique(ratings_UR[~np.isnan(ratings_UR)])
    coincidences_UVV = _coincidences(ratings_UR, values_V)
    weights_U = coincidences_UVV.any(axis=(1, 2))
    coincidences_UVV = coincidences_UVV[weights_U]
    units = len(coincidences_UVV)
    if not units:
        return Alpha(math.nan, math.nan, math.nan)
    value = float(_alpha(coincidences_UVV.sum(axis=0)[None], values_V, level)[0])
    if not resamples:
        return Alpha(value, math.nan, math.nan)
    counts_BU = np.random.default_rng(seed).multinomial(units, np.full(units, 1.0 / units), size=resamples)
    drawn_BVV = np.tensordot(counts_BU.astype(np.float64), coincidences_UVV, axes=1)
    samples_B = _alpha(drawn_BVV, values_V, level)
    defined = samples_B[~np.isnan(samples_B)]
    low, high = interval(defined) if len(defined) else (math.nan, math.nan)
    return Alpha(value, low, high)


def consistency(raters: Mapping[str, Sequence[int]], judge: Mapping[str, int]) -> Consistency:
    """Majorities of raters against a judge's scores, over the pictures that both have."""
    both = [key for key in raters if key in judge and raters[key]]
    if not both:
        return Consistency(math.nan, math.nan, math.nan, 0, 0)
    majorities = [majority(raters[key]) for key in both]
    gaps = [abs(score - judge[key]) for key, (score, _) in zip(both, majorities, strict=True)]
    agreed = [gap for gap, (_, split) in zip(gaps, majorities, strict=True) if not split]
    return Consistency(
        exact=sum(gap == 0 for gap in gaps) / len(gaps),
        near=sum(gap <= 1 for gap in gaps) / len(gaps),
        exact_without_splits=sum(gap == 0 for gap in agreed) / len(agreed) if agreed else math.nan,
        splits=sum(split for _, split in majorities),
        pictures=len(both),
    )


def majority(scores: Sequence[int]) -> tuple[int, bool]:
    """What most raters say, and whether they are split (a lone rater is not)."""
    (first, count), *others = Counter(scores).most_common(2)
    if len(scores) == 1 or (count >= 2 and (not others or others[0][1] < count)):
        return first, False
    return sorted(scores)[(len(scores) - 1) // 2], True


def _coincidences(ratings_UR: np.ndarray, values_V: np.ndarray) -> np.ndarray:
    """Pairs of ratings within each unit, each unit with m ratings weighing m -> [U, V, V]."""
    counts_UV = (ratings_UR[:, :, None] == values_V).sum(axis=1).astype(np.float64)
    total_U = counts_UV.sum(axis=1)
    pairs_UVV = counts_UV[:, :, None] * counts_UV[:, None, :]
    diagonal = np.arange(len(values_V))
    pairs_UVV[:, diagonal, diagonal] -= counts_UV  # a rating is no pair with itself
    weight_U = np.where(total_U > 1, 1.0 / np.maximum(total_U - 1, 1.0), 0.0)
    return np.asarray(pairs_UVV * weight_U[:, None, None])


def _alpha(coincidences_BVV: np.ndarray, values_V: np.ndarray, level: Level) -> np.ndarray:
    counts_BV = coincidences_BVV.sum(axis=2)
    total_B = counts_BV.sum(axis=1)
    distance_BVV = _distances(counts_BV, values_V, level)
    observed_B = (coincidences_BVV * distance_BVV).sum(axis=(1, 2))
    expected_B = (counts_BV[:, :, None] * counts_BV[:, None, :] * distance_BVV).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected_B > 0, 1 - (total_B - 1) * observed_B / expected_B, math.nan)


def _distances(counts_BV: np.ndarray, values_V: np.ndarray, level: Level) -> np.ndarray:
    """Squared distances between values; the ordinal ones depend on how often each value was given."""
    if level == "nominal":
        flat_VV = 1.0 - np.eye(len(values_V))
    elif level == "interval":
        flat_VV = (values_V[:, None] - values_V[None, :]) ** 2
    else:
        middle_BV = counts_BV.cumsum(axis=1) - counts_BV / 2
        return np.asarray((middle_BV[:, :, None] - middle_BV[:, None, :]) ** 2)
    return np.broadcast_to(flat_VV, (len(counts_BV), *flat_VV.shape))
