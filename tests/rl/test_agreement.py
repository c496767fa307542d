"""Krippendorff's alpha against known answers, its interval, and what most raters say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mentor_rl.evaluate.agreement import consistency, krippendorff, majority

NO = float("nan")


def table(text: str) -> np.ndarray:
    """A line per rater, "." for no rating -> [U, R]."""
    rows = [[NO if cell == "." else float(cell) for cell in line.split()] for line in text.strip().splitlines()]
    return np.array(rows).T


THREE_CODERS = table(
    """
    . . . . . 3 4 1 2 1 1 3 3 . 3
    1 . 2 1 3 3 4 3 . . . . . . .
    . . 2 1 3 4 4 . 2 1 1 3 3 . 4
    """
)
FOUR_OBSERVERS = table(
    """
    1 2 3 3 2 1 4 1 2 . . .
    1 2 3 3 2 2 4 1 2 5 . 3
    . 3 3 3 2 3 4 2 2 5 1 .
    1 2 3 3 2 4 4 1 2 5 1 .
    """
)


def test_known_answers() -> None:
    """The two worked examples that every implementation is checked with (Krippendorff 2011 has the second)."""
    assert krippendorff(THREE_CODERS, "nominal").value == pytest.approx(0.691358, abs=1e-6)
    assert krippendorff(THREE_CODERS, "interval").value == pytest.approx(0.810845, abs=1e-6)
    assert krippendorff(FOUR_OBSERVERS, "ordinal").value == pytest.approx(0.815, abs=5e-4)
    assert krippendorff(FOUR_OBSERVERS, "nominal").value == pytest.approx(0.743, abs=5e-4)
    assert krippendorff(FOUR_OBSERVERS, "interval").value == pytest.approx(0.849, abs=5e-4)


def test_perfect_opposite_and_undefined() -> None:
    agreed = np.array([[0.0, 0.0], [4.0, 4.0], [2.0, 2.0]])
    found = krippendorff(agreed)
    assert found.value == 1.0
    assert found.low == 1.0
    assert krippendorff(np.array([[0.0, 4.0], [4.0, 0.0]]), "nominal").value == pytest.approx(-0.5)  # 1 - 3 * 4 / 8
    assert math.isnan(krippendorff(np.full((5, 3), 2.0)).value)  # nobody ever said anything else
    assert math.isnan(krippendorff(np.array([[1.0, NO], [NO, 2.0]])).value)  # no unit has two ratings


def test_order_of_units_and_raters_does_not_matter() -> None:
    shuffled = FOUR_OBSERVERS[::-1, [2, 0, 3, 1]]
    assert krippendorff(shuffled).value == pytest.approx(krippendorff(FOUR_OBSERVERS).value)


def test_the_interval_holds_the_value_and_narrows_with_more_units() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, size=400)
    ratings = np.clip(truth[:, None] + rng.integers(-1, 2, size=(400, 3)), 0, 4).astype(float)
    few, many = krippendorff(ratings[:40]), krippendorff(ratings)
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 2


def test_majority() -> None:
    assert majority([3, 3, 1]) == (3, False)
    assert majority([1, 4, 2]) == (2, True)
    assert majority([4]) == (4, False)
    assert majority([0, 4]) == (0, True)  # the lower median
    assert majority([1, 1, 3, 3]) == (1, True)


def test_consistency_by_hand() -> None:
    """Four pictures: same, one apart, a split whose median is the judge's, far; one that the judge never saw."""
    raters = {"a": [3, 3, 2], "b": [2, 2, 2], "c": [0, 1, 4], "d": [0, 0, 0], "e": [1, 1, 1]}
    found = consistency(raters, {"a": 3, "b": 3, "c": 1, "d": 4})
    assert found.pictures == 4
    assert found.splits == 1
    assert found.exact == 0.5
    assert found.near == 0.75
    assert found.exact_without_splits == pytest.approx(1 / 3)
