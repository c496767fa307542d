"""What a GRPO run watches: known answers of its group statistics, and randomness left alone."""

import random

import numpy as np
import pytest
import torch

from mentor_rl.monitor import flat_groups, token_diversity, undisturbed_randomness


def test_diversity_counts_positions_at_which_pairs_differ() -> None:
    """Group 0: one of four positions differs. Group 7: three pairs, of which two differ everywhere."""
    tokens_NL = torch.tensor([[1, 2, 3, 4], [5, 5, 5, 5], [1, 2, 3, 9], [6, 6, 6, 6], [5, 5, 5, 5]])
    assert token_diversity(tokens_NL, [0, 7, 0, 7, 7]) == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert token_diversity(tokens_NL[[1, 4]], [7, 7]) == 0.0


def test_a_group_is_flat_when_no_reward_tells_its_pictures_apart() -> None:
    nan = np.nan
    values_NR = np.array([[1.0, 0.2], [1.0, 0.2], [1.0, 0.3], [1.0, 0.2], [nan, 0.1], [2.0, nan]])
    assert flat_groups(values_NR, [0, 0, 1, 1, 2, 2]) == pytest.approx(2 / 3)


def test_watching_puts_random_states_back() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with undisturbed_randomness():
        assert draws() == expected
    assert draws() == expected
