"""The objective against exact enumeration on a toy with V**L sequences, and its parts against known answers.

Shapes: S all V**L sequences, L tokens, V vocabulary, P prefixes, N samples, K groups, G group size.
"""

import itertools

import pytest
import torch

from mentor_rl.algorithm import Entropy, GrpoAlgorithm
from mentor_rl.objective import (
    clipped_surrogate,
    group_advantages,
    grpo_loss,
    importance_weights,
    is_clipped,
    k3_kl,
    next_entropy_coefficient,
    policy_ratio,
)

V, L = 3, 3
SEQUENCES_SL = torch.tensor(list(itertools.product(range(V), repeat=L)))


def toy_table(seed: int) -> torch.Tensor:
    """Logits [L, V**(L-1), V]: one free distribution for each prefix of each length; float64 for sharp comparisons."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(L, V ** (L - 1), V, generator=generator, dtype=torch.float64)


def toy_logp(table: torch.Tensor) -> torch.Tensor:
    """Token log-probs of every sequence, [S, L]."""
    logp_LPV = table.log_softmax(-1)
    columns = []
    for place in range(L):
        columns.append(logp_LPV[place, prefix_index(place), SEQUENCES_SL[:, place]])
    return torch.stack(columns, dim=1)


def prefix_index(place: int) -> torch.Tensor:
    """Which row of the table the first ``place`` tokens of each sequence select, [S]."""
    return (SEQUENCES_SL[:, :place] * V ** torch.arange(place)).sum(1)


@pytest.fixture
def toy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A policy's table, a reference's table, and a reward for every sequence."""
    generator = torch.Generator().manual_seed(7)
    return toy_table(1).requires_grad_(), toy_table(2), torch.randn(V**L, generator=generator, dtype=torch.float64)


def gradient(value: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, table, retain_graph=True)[0]


def test_expected_gradient_is_that_of_the_expected_reward(toy) -> None:
    table, _, reward_S = toy
    logp_SL = toy_logp(table)
    p_S = logp_SL.sum(1).exp()
    analytic = gradient((p_S * reward_S).sum(), table) / L  # the objective is a mean over tokens
    enumerated = torch.zeros_like(table)
    for s in range(len(p_S)):
        logp_1L = logp_SL[s, None]
        loss = grpo_loss(logp_1L, logp_1L.detach(), None, reward_S[s, None], GrpoAlgorithm(beta=0.0)).loss
        enumerated += p_S[s].detach() * gradient(loss, table)
    torch.testing.assert_close(-enumerated, analytic, atol=1e-12, rtol=0)


def test_group_baseline_only_shortens_the_gradient(toy) -> None:
    """Subtracting the mean of a group that holds the sample itself leaves (G - 1) / G of the gradient, unbent."""
    table, _, reward_S = toy
    group_size = 2
    logp_SL = toy_logp(table)
    p_S = logp_SL.sum(1).exp()
    analytic = gradient((p_S * reward_S).sum(), table) / L * (group_size - 1) / group_size
    pairs_S2 = torch.cartesian_prod(*[torch.arange(len(p_S))] * group_size)
    one = torch.ones(1, dtype=torch.float64)
    advantages = group_advantages(reward_S[pairs_S2.flatten()][:, None], one, group_size, "sum_then_normalize", "none")
    surrogate_N = clipped_surrogate(
        policy_ratio(logp_SL[pairs_S2.flatten()], logp_SL[pairs_S2.flatten()].detach()), advantages, 0.2
    ).mean(1)
    expected = (surrogate_N.view(-1, group_size).mean(1) * p_S[pairs_S2].prod(1).detach()).sum()
    torch.testing.assert_close(gradient(expected, table), analytic, atol=1e-12, rtol=0)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_kl_term_follows_the_kl_at_visited_prefixes(toy, bias_correction: bool) -> None:
    """With the ratio in front its gradient is that of KL(pi || ref); plain k3 follows KL(ref || pi) instead."""
    table, reference, _ = toy
    logp_SL, reference_SL = toy_logp(table), toy_logp(reference)
    p_S = logp_SL.sum(1).exp().detach()
    zero_S = torch.zeros(len(p_S), dtype=torch.float64)
    algorithm = GrpoAlgorithm(beta=1.0, kl_bias_correction=bias_correction)
    enumerated = torch.zeros_like(table)
    for s in range(len(p_S)):
        old_1L, ref_1L = logp_SL[s, None].detach(), reference_SL[s, None]
        terms = grpo_loss(logp_SL[s, None], old_1L, ref_1L, zero_S[s, None], algorithm)
        enumerated += p_S[s] * gradient(terms.loss, table)
    pi, ref = table.log_softmax(-1), reference.log_softmax(-1)
    kl_LP = (pi.exp() * (pi - ref)).sum(-1) if bias_correction else (ref.exp() * (ref - pi)).sum(-1)
    visits_LP = torch.zeros_like(kl_LP)
    for place in range(L):
        visits_LP[place].index_add_(0, prefix_index(place), p_S)
    analytic = gradient((visits_LP * kl_LP).sum() / L, table)
    torch.testing.assert_close(enumerated, analytic, atol=1e-12, rtol=0)


def test_k3_is_unbiased_and_never_negative(toy) -> None:
    table, reference, _ = toy
    logp_SL, reference_SL = toy_logp(table), toy_logp(reference)
    k3_SL = k3_kl(logp_SL, reference_SL)
    assert (k3_SL >= 0).all()
    expected = (logp_SL.sum(1).exp()[:, None] * k3_SL).sum()
    exact = (logp_SL.sum(1).exp() * (logp_SL - reference_SL).sum(1)).sum()
    torch.testing.assert_close(expected, exact)


def test_clip_stops_the_gradient_past_its_edges_and_only_there() -> None:
    ratio_NL = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]], requires_grad=True)
    advantages_N = torch.tensor([2.0, -2.0])
    clipped_surrogate(ratio_NL, advantages_N, epsilon=0.2, epsilon_high=0.4).sum().backward()
    assert ratio_NL.grad is not None
    assert ratio_NL.grad.tolist() == [[2.0, 2.0, 0.0], [0.0, -2.0, -2.0]]
    flags = is_clipped(ratio_NL, advantages_N, epsilon=0.2, epsilon_high=0.4)
    assert flags.tolist() == [[False, False, True], [True, False, False]]


def test_the_two_sided_clip_bounds_what_one_token_can_weigh() -> None:
    ratio_NL = torch.tensor([[0.9, 3.0, 50.0]])
    down_N, up_N = torch.tensor([-1.0]), torch.tensor([1.0])
    assert clipped_surrogate(ratio_NL, down_N, 0.2)[0].tolist() == pytest.approx([-0.9, -3.0, -50.0])
    assert clipped_surrogate(ratio_NL, down_N, 0.2, delta=4.0)[0].tolist() == pytest.approx([-0.9, -3.0, -4.0])
    assert torch.equal(clipped_surrogate(ratio_NL, up_N, 0.2, delta=4.0), clipped_surrogate(ratio_NL, up_N, 0.2))


def test_a_cap_without_end_is_exact_importance_sampling(toy) -> None:
    """Pictures drawn from another policy: whole-sequence weights give the true gradient of ours, to rounding."""
    table, sampler, reward_S = toy
    exact, biased = (corrected_gradient(table, sampler, reward_S, cap) for cap in (1e9, None))
    truth = true_gradient(table, reward_S)
    torch.testing.assert_close(exact, truth, atol=1e-12, rtol=0)
    assert (biased - truth).norm() > 0.1 * truth.norm()


@pytest.mark.parametrize(("level", "cap"), [("sequence", 1.3), ("token", 1.2)])
def test_truncated_weights_bring_the_gradient_closer_to_the_truth(level, cap) -> None:
    """A sampler that differs by noise, as a rounded one does; the mean error over ten policies and rewards."""
    errors, capped = torch.zeros(2), 0
    for seed in range(10):
        generator = torch.Generator().manual_seed(100 + seed)
        table = toy_table(seed).requires_grad_()
        sampler = table.detach() + 0.1 * torch.randn(table.shape, generator=generator, dtype=torch.float64)
        reward_S = torch.randn(V**L, generator=generator, dtype=torch.float64)
        truth = true_gradient(table, reward_S)
        for i, limit in enumerate((cap, None)):
            found = corrected_gradient(table, sampler, reward_S, limit, level)
            errors[i] += (found - truth).norm() / truth.norm()
        capped += int((importance_weights(toy_logp(table), toy_logp(sampler), cap, level) == cap).sum())
    assert capped > 0, "the cap bites"
    assert errors[0] < errors[1] * (0.2 if level == "sequence" else 0.8)


def true_gradient(table: torch.Tensor, reward_S: torch.Tensor) -> torch.Tensor:
    return gradient((toy_logp(table).sum(1).exp() * reward_S).sum(), table) / L


def corrected_gradient(
    table: torch.Tensor, sampler: torch.Tensor, reward_S: torch.Tensor, cap: float | None, level: str = "sequence"
) -> torch.Tensor:
    """The expected gradient of the loss over what ``sampler`` draws; cap None: without weights."""
    logp_SL, sampler_SL = toy_logp(table), toy_logp(sampler)
    drawn_S = sampler_SL.sum(1).exp().detach()
    weights = None if cap is None else importance_weights(logp_SL, sampler_SL, cap, level)  # type: ignore[arg-type]
    advantages_S = reward_S * drawn_S * len(drawn_S)  # the mean over samples becomes the expectation
    loss = grpo_loss(logp_SL, logp_SL.detach(), None, advantages_S, GrpoAlgorithm(beta=0.0), weights_NX=weights).loss
    return -gradient(loss, table)


def test_the_weight_of_the_bonus_follows_the_entropy() -> None:
    entropy = Entropy(bonus=0.01, target=2.0, step=0.005, low=0.0, high=0.02)
    assert next_entropy_coefficient(0.01, 1.9, entropy) == pytest.approx(0.015)
    assert next_entropy_coefficient(0.018, 1.9, entropy) == 0.02
    assert next_entropy_coefficient(0.01, 2.1, entropy) == pytest.approx(0.005)
    assert next_entropy_coefficient(0.002, 2.1, entropy) == 0.0


def test_sequence_ratio_is_the_geometric_mean_of_token_ratios() -> None:
    logp_NL = torch.tensor([[-1.0, -2.0, -3.0]])
    old_NL = torch.tensor([[-1.5, -2.0, -2.8]])
    ratio_N1 = policy_ratio(logp_NL, old_NL, "sequence")
    torch.testing.assert_close(ratio_N1[0, 0], policy_ratio(logp_NL, old_NL).prod() ** (1 / 3))


def test_group_statistics_by_hand() -> None:
    """Two groups of two, one reward: (r - mean) / std with n - 1 below the sum."""
    rewards_N1 = torch.tensor([[0.0], [2.0], [5.0], [5.0]])
    one = torch.ones(1)
    group = group_advantages(rewards_N1, one, 2, "sum_then_normalize", "group")
    torch.testing.assert_close(group, torch.tensor([-1.0, 1.0, 0.0, 0.0]) / (2**0.5 + 1e-4))
    none = group_advantages(rewards_N1, one, 2, "sum_then_normalize", "none")
    assert none.tolist() == [-1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("aggregation", ["normalize_then_sum", "sum_then_normalize"])
def test_missing_scores_leave_their_group_statistics_alone(aggregation: str) -> None:
    """A sample that no reward could score gets 0, and the others get what they would get without it."""
    rewards_N2 = torch.tensor([[1.0, 0.2], [3.0, 0.4], [torch.nan, torch.nan]])
    weights = torch.tensor([1.0, 0.5])
    with_gap = group_advantages(rewards_N2, weights, 3, aggregation)  # type: ignore[arg-type]
    without = group_advantages(rewards_N2[:2], weights, 2, aggregation)  # type: ignore[arg-type]
    torch.testing.assert_close(with_gap, torch.cat([without, torch.zeros(1)]))


def test_normalize_then_sum_ignores_units() -> None:
    rewards_N2 = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(2)
    stretched = rewards_N2 * torch.tensor([1.0, 1000.0])
    kept = group_advantages(rewards_N2, weights, 4, "normalize_then_sum")
    torch.testing.assert_close(group_advantages(stretched, weights, 4, "normalize_then_sum"), kept, atol=2e-3, rtol=0)
