"""Advantages: known answers, equality with trl's formulas, and what missing scores must not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mentor_rewards.aggregate import EPS, advantages, for_trl, normalize_then_sum, sum_then_normalize

NAN = float("nan")
G = 4
IDS = np.repeat(np.arange(3), G)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 2)) * [0.01, 5.0]


def nanstd(values: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> torch.Tensor:
    """Standard deviation over what is there, N-1 in the denominator; NaN for a single value."""
    mean = values.nanmean() if dim is None else values.nanmean(dim, keepdim=True)
    there = (~values.isnan()).sum() if dim is None else (~values.isnan()).sum(dim, keepdim=keepdim)
    squares = ((values - mean) ** 2).nansum() if dim is None else ((values - mean) ** 2).nansum(dim, keepdim=keepdim)
    return torch.where(there > 1, squares / (there - 1), NAN).sqrt()


def trl_normalize_then_sum(values: np.ndarray, weights: list[float]) -> np.ndarray:
    """As trl 1.16 computes it, here in float64, groups contiguous."""
    grouped = torch.tensor(values).view(-1, G, values.shape[1])
    z = (grouped - grouped.nanmean(dim=1, keepdim=True)) / (nanstd(grouped, dim=1, keepdim=True) + 1e-4)
    sums = (z.view(-1, values.shape[1]) * torch.tensor(weights)).nansum(dim=1)
    sums[torch.tensor(np.isnan(values).all(axis=1))] = NAN
    return torch.nan_to_num((sums - sums.nanmean()) / (nanstd(sums) + 1e-4), nan=0.0).numpy()


def trl_sum_then_normalize(values: np.ndarray, weights: list[float], scale: str) -> np.ndarray:
    sums = (torch.tensor(values) * torch.tensor(weights)).nansum(dim=1)
    sums[torch.tensor(np.isnan(values).all(axis=1))] = NAN
    grouped = sums.view(-1, G)
    centred = sums - grouped.nanmean(dim=1).repeat_interleave(G)
    spread = nanstd(sums).expand_as(sums) if scale == "batch" else nanstd(grouped, dim=1).repeat_interleave(G)
    result = centred if scale == "none" else centred / (spread + 1e-4)
    return torch.nan_to_num(result, nan=0.0).numpy()


def test_one_group_by_hand() -> None:
    values = np.array([[0.0], [1.0], [2.0]])
    assert sum_then_normalize(values, [2.0], [7, 7, 7], "none") == pytest.approx([-2, 0, 2])
    assert sum_then_normalize(values, [2.0], [7, 7, 7]) == pytest.approx(np.array([-2, 0, 2]) / (2 + EPS))
    assert normalize_then_sum(values, [2.0], [7, 7, 7]) == pytest.approx([-1, 0, 1], abs=2e-4)


@pytest.mark.parametrize(
    "missing", [[], [(1, 0)], [(1, 0), (5, 1)], [(2, 0), (2, 1)], [(0, 0), (1, 0), (2, 0), (3, 0)]]
)
def test_normalize_then_sum_is_trls(values: np.ndarray, missing: list[tuple[int, int]]) -> None:
    for place in missing:
        values[place] = NAN
    assert normalize_then_sum(values, [1.0, 0.5], IDS) == pytest.approx(trl_normalize_then_sum(values, [1.0, 0.5]))


def test_a_saturated_reward_counts_less_under_a_spread_floor() -> None:
    """Two rewards that pull apart, the second in its last thousandths: they cancel, until the second has a floor."""
    values = np.array([[0.0, 0.998], [1.0, 0.996], [2.0, 0.994]])
    spread = 0.002
    without = normalize_then_sum(values, [1.0, 1.0], [0] * 3)
    assert np.abs(normalize_then_sum(values, [1.0, 1.0], [0] * 3, [0.0, 0.0]) - without).max() == 0
    z_first, z_second = 1 / (1 + EPS), spread / (spread + EPS)
    assert without[2] == pytest.approx((z_first - z_second) / (z_first - z_second + EPS))
    floored = z_first - spread / (0.1 + EPS)
    found = normalize_then_sum(np.vstack([values, [[9.0, NAN]]]), [1.0, 1.0], [0, 0, 0, 1], [0.0, 0.1])
    sums = np.array([-floored, 0, floored, 0])
    assert found == pytest.approx(sums / (sums.std(ddof=1) + EPS))


@pytest.mark.parametrize("missing", [[], [(1, 0), (5, 1)], [(0, 0), (1, 0), (2, 0), (3, 0)]])
def test_trls_formula_gives_floored_advantages_from_the_values_made_for_it(
    values: np.ndarray, missing: list[tuple[int, int]]
) -> None:
    for place in missing:
        values[place] = NAN
    floors = [0.02, 4.0]  # above some groups' spreads, below others'
    handed = for_trl(values, IDS, floors_R=floors).astype(np.float32).astype(np.float64)
    expected = normalize_then_sum(values, [1.0, 0.5], IDS, floors)
    assert trl_normalize_then_sum(handed, [1.0, 0.5]) == pytest.approx(expected, abs=1e-4)
    assert np.abs(expected - normalize_then_sum(values, [1.0, 0.5], IDS)).max() > 0.01
    assert np.array_equal(for_trl(values, IDS), values, equal_nan=True)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_sum_then_normalize_is_trls_on_filled_values(values: np.ndarray, scale: str) -> None:
    values[1, 0] = values[5, 1] = NAN
    values[9] = NAN
    expected = trl_sum_then_normalize(for_trl(values, IDS, "sum_then_normalize"), [1.0, 0.5], scale)
    assert advantages(values, [1.0, 0.5], IDS, "sum_then_normalize", scale) == pytest.approx(expected)


def test_a_missing_score_is_no_penalty() -> None:
    """The sample without a judge's score keeps the place that its other reward gives it."""
    values = np.array([[0.0, 4.0], [1.0, NAN], [2.0, 4.0], [1.0, 4.0]])
    for aggregation in ("normalize_then_sum", "sum_then_normalize"):
        found = advantages(values, [1.0, 1.0], [0] * 4, aggregation)
        assert found[1] == pytest.approx(found[3]) == pytest.approx(0)


@pytest.mark.parametrize("aggregation", ["normalize_then_sum", "sum_then_normalize"])
def test_unscored_samples_and_flat_groups_get_nothing(values: np.ndarray, aggregation: str) -> None:
    values[2] = NAN
    values[4:8] = [0.1 + 0.2, 7.0]
    values[5, 0] = 0.3  # equal up to rounding
    found = advantages(values, [1.0, 1.0], IDS, aggregation)
    assert found[2] == 0
    assert np.isfinite(found).all()
    offset = found[4:8]
    assert np.ptp(offset) == 0
    if aggregation == "sum_then_normalize":
        assert offset[0] == 0


def test_groups_need_not_lie_together(values: np.ndarray) -> None:
    order = np.random.default_rng(1).permutation(12)
    for aggregation in ("normalize_then_sum", "sum_then_normalize"):
        plain = advantages(values, [1.0, 2.0], IDS, aggregation)
        assert advantages(values[order], [1.0, 2.0], IDS[order], aggregation) == pytest.approx(plain[order])


def test_scale_of_a_reward_does_not_matter_when_normalised_first(values: np.ndarray) -> None:
    plain = normalize_then_sum(values * [100, 1], [1.0, 1.0], IDS)
    assert normalize_then_sum(values * [1000, 50], [1.0, 1.0], IDS) == pytest.approx(plain, abs=1e-3)
