"""GRPO as small pure functions: the readable statement of what the trainer optimises.

The trainer lets trl compute this loss (trainer.py); tests/rl/test_objective_trl.py holds trl to these functions in
value and gradient for every setting, and tests/rl/test_objective.py these functions to exact enumeration on a toy.
Nothing here knows trl, models or pictures. Settings are those of algorithm.py.

For a prompt q, G pictures o_1..o_G of L tokens are drawn from the policy, and (Shao et al. 2024, arXiv 2402.03300,
equation 3; picture tokens have a fixed length, so |o_i| = L)

    J = E 1/G sum_i 1/L sum_t  m_it w_i S_it - beta D_it  +  c H
    S_it   = min(rho_it A_i, clip(rho_it, 1 - eps, 1 + eps_high) A_i)                  the surrogate; other losses below
    rho_it = pi(o_it | q, o_i<t) / pi_old(o_it | q, o_i<t)        the ratio, 1 while the policy is the one that sampled
    A_i    = (r_i - mean(r)) / (std(r) + 1e-4)                    the advantage within the group
    D_it   = pi_ref / pi - log(pi_ref / pi) - 1                   the estimator "k3" of KL(pi || pi_ref), never negative
    m_it   which tokens count: all of them, unless entropy.quantile or off_policy_threshold leave some out
    w_i    how much likelier the trainer finds the picture than its sampler did, at most importance.cap; 1 by default
    c H    entropy.bonus times the mean entropy of the tokens that count; 0 by default

The losses, for an advantage A (sg: without gradient):

    grpo bnpo dr_grpo dapo   the S above; `delta` bounds the unclipped ratio as well (INTELLECT-2, arXiv 2505.07291)
    luspo                    L times that, with one ratio per sequence (arXiv 2602.05261)
    cispo                    sg(min(rho, eps_high)) A log pi                                     (arXiv 2506.13585)
    sapo                     4 / tau sigmoid(tau (rho - 1)) A, tau by the sign of A              (arXiv 2511.20347)
    vespo                    sg(W^k exp(lambda (1 - W))) A log pi, W = prod_t rho_t, by the sign (arXiv 2602.10693)

grpo, bnpo, dr_grpo and dapo differ only in how they weigh sequences of different lengths (mean of sequence means, mean
of tokens, tokens over a constant length, tokens over the global count). Pictures all have L tokens, so the four are one
and the same number: the mean over tokens. While rho = 1 (inner_iterations 1) the gradients of all eight agree, but for
luspo's factor L; recipes/ALGORITHMS.md says more, and a test holds it to that.

Departures from the first paper, each shared with trl's defaults:

- the ratio multiplies D (`kl_bias_correction`): differentiating plain k3 on samples of pi follows KL(pi_ref || pi);
  with the ratio its expected gradient is that of KL(pi || pi_ref) at the visited prefixes (DeepSeek-V3.2, arXiv
  2512.02556). That holds for `ratio: token`; with `sequence` one weight stands in front of all of a sequence's D;
- several rewards are normalised one by one, summed by weight, then normalised over the batch (GDPO) unless
  `sum_then_normalize` is asked for;
- a missing score (NaN) is left out of the statistics of its group and adds nothing to its own sample.

Shapes: N samples, K prompts, G group size (N = K*G, group-contiguous), L image tokens, R rewards. NX is [N, L], or
[N, 1] where one number stands for a sequence.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from mentor_rewards.aggregate import Aggregation, Scale, advantages

from mentor_rl.algorithm import Entropy, GrpoAlgorithm, Level, Sapo, Vespo

SMALLEST, LARGEST = math.log(1e-8), 20.0  # vespo's log-weights stay between these, as in its authors' code


class GrpoLoss(NamedTuple):
    """The loss and what is logged beside it, all scalars."""

    loss: torch.Tensor
    kl: torch.Tensor
    clip_share: torch.Tensor


def group_advantages(
    rewards_NR: torch.Tensor,
    weights_R: torch.Tensor,
    group_size: int,
    aggregation: Aggregation = "normalize_then_sum",
    scale: Scale = "group",
) -> torch.Tensor:
    """Advantages_N of K groups of ``group_size`` samples under R weighted rewards; NaN is "could not score".

    ``sum_then_normalize``: r = sum_R w r_R; A = (r - mean over the group) / (std + 1e-4), where ``scale`` says over
    what the std is taken: the group, the batch, or not at all (Dr. GRPO, arXiv 2503.20783).
    ``normalize_then_sum``: each reward is normalised within its group, so that neither units nor spread decide its
    influence, then summed by weight and normalised over the batch (GDPO, arXiv 2601.05242); ``scale`` has no say.
    A sample that no reward could score gets 0. The arithmetic has one home, mentor_rewards/aggregate.py.
    """
    groups_N = torch.arange(len(rewards_NR)) // group_size
    values = advantages(
        rewards_NR.detach().cpu().double().numpy(), weights_R.tolist(), groups_N.numpy(), aggregation, scale
    )
    return torch.from_numpy(values).to(rewards_NR)


def policy_ratio(logp_NL: torch.Tensor, old_logp_NL: torch.Tensor, level: Level = "token") -> torch.Tensor:
    """rho: [N, L] per token; or [N, 1], the geometric mean over the sequence (GSPO, arXiv 2507.18071)."""
    log_ratio_NL = logp_NL - old_logp_NL
    return (log_ratio_NL if level == "token" else log_ratio_NL.mean(dim=1, keepdim=True)).exp()


# ---- surrogates: what is maximised, per token or per sequence --------------------------------------------------------


def clipped_surrogate(
    ratio_NX: torch.Tensor,
    advantages_N: torch.Tensor,
    epsilon: float,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> torch.Tensor:
    """min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A), [N, L or 1].

    Where A < 0 nothing bounds the first of the two from below: one token that became much likelier can outweigh a
    batch. ``delta``, the two-sided clip, replaces its ratio by min(rho, delta).
    """
    high = epsilon if epsilon_high is None else epsilon_high
    advantages_N1 = advantages_N[:, None]
    bounded_NX = ratio_NX if delta is None else ratio_NX.clamp(max=delta)
    return torch.minimum(bounded_NX * advantages_N1, ratio_NX.clamp(1 - epsilon, 1 + high) * advantages_N1)


def is_clipped(
    ratio_NX: torch.Tensor, advantages_N: torch.Tensor, epsilon: float, epsilon_high: float | None = None
) -> torch.Tensor:
    """Where the clip stops the gradient, [N, L or 1] bool: ratios already past the edge they are pushed to."""
    high = epsilon if epsilon_high is None else epsilon_high
    up_N1 = advantages_N[:, None] > 0
    down_N1 = advantages_N[:, None] < 0
    return (up_N1 & (ratio_NX > 1 + high)) | (down_N1 & (ratio_NX < 1 - epsilon))


def cispo_surrogate(
    ratio_NX: torch.Tensor, logp_NL: torch.Tensor, advantages_N: torch.Tensor, cap: float
) -> torch.Tensor:
    """sg(min(rho, cap)) A log pi, [N, L]: every token keeps a gradient, weighed by its capped ratio."""
    return ratio_NX.clamp(max=cap).detach() * advantages_N[:, None] * logp_NL


def sapo_surrogate(ratio_NX: torch.Tensor, advantages_N: torch.Tensor, sapo: Sapo) -> torch.Tensor:
    """4 / tau sigmoid(tau (rho - 1)) A, [N, L or 1]: a soft gate in place of the clip, of slope A at rho = 1."""
    advantages_N1 = advantages_N[:, None]
    tau_N1 = torch.where(advantages_N1 > 0, sapo.temperature_pos, sapo.temperature_neg)
    return 4 / tau_N1 * torch.sigmoid(tau_N1 * (ratio_NX - 1)) * advantages_N1


def vespo_surrogate(
    logp_NL: torch.Tensor,
    old_logp_NL: torch.Tensor,
    advantages_N: torch.Tensor,
    vespo: Vespo,
    weights_NX: torch.Tensor | None = None,
) -> torch.Tensor:
    """sg(phi(W)) A log pi, [N, L], with phi(W) = W^k exp(lambda (1 - W)), which is 1 at W = 1.

    W is the product of a sequence's ratios, and of its importance weights if there are any.
    """
    log_w_N1 = (logp_NL - old_logp_NL).detach().clamp(-LARGEST, LARGEST).sum(dim=1, keepdim=True)
    if weights_NX is not None:
        log_w_N1 = log_w_N1 + weights_NX.log().clamp(SMALLEST, LARGEST).sum(dim=1, keepdim=True)
    log_w_N1 = log_w_N1.clamp(SMALLEST, LARGEST)
    rising_N1 = advantages_N[:, None] >= 0
    k_N1 = torch.where(rising_N1, vespo.k_pos, vespo.k_neg)
    decay_N1 = torch.where(rising_N1, vespo.lambda_pos, vespo.lambda_neg)
    phi_N1 = (k_N1 * log_w_N1 + decay_N1 * (1 - log_w_N1.exp())).exp()
    return phi_N1 * advantages_N[:, None] * logp_NL


def surrogate(
    logp_NL: torch.Tensor,
    old_logp_NL: torch.Tensor,
    advantages_N: torch.Tensor,
    algorithm: GrpoAlgorithm,
    weights_NX: torch.Tensor | None = None,
) -> torch.Tensor:
    """w S of the recipe's loss, [N, L or 1]."""
    if algorithm.loss == "vespo":
        return vespo_surrogate(logp_NL, old_logp_NL, advantages_N, algorithm.vespo or Vespo(), weights_NX)
    ratio_NX = policy_ratio(logp_NL, old_logp_NL, algorithm.ratio)
    if algorithm.loss == "cispo":
        found_NX = cispo_surrogate(ratio_NX, logp_NL, advantages_N, algorithm.epsilon_high or algorithm.epsilon)
    elif algorithm.loss == "sapo":
        found_NX = sapo_surrogate(ratio_NX, advantages_N, algorithm.sapo or Sapo())
    else:
        clip = algorithm.epsilon, algorithm.epsilon_high, algorithm.delta
        found_NX = clipped_surrogate(ratio_NX, advantages_N, *clip)
    return found_NX if weights_NX is None else found_NX * weights_NX


# ---- what stands beside the surrogate --------------------------------------------------------------------------------


def k3_kl(logp_NL: torch.Tensor, reference_logp_NL: torch.Tensor) -> torch.Tensor:
    """Per-token estimate of KL(pi || pi_ref) from samples of pi (Schulman 2020; equation 4 of the GRPO paper)."""
    log_inverse_NL = reference_logp_NL - logp_NL
    return log_inverse_NL.exp() - log_inverse_NL - 1


def importance_weights(
    logp_NL: torch.Tensor, sampler_logp_NL: torch.Tensor, cap: float, level: Level = "sequence"
) -> torch.Tensor:
    """w = min(pi / pi_sampler, cap), without gradient: [N, 1] of whole sequences, or [N, L] of single tokens.

    A sampler of another precision draws from a slightly other distribution; without a cap, weights of whole sequences
    take that back exactly. The cap bounds what one picture can weigh (Ionides 2008). Weights of single tokens vary
    less, but leave what the sampler drew before and after a token as it is (Yao et al. 2025, "TIS").
    """
    gap_NX = (logp_NL - sampler_logp_NL).detach()
    return (gap_NX if level == "token" else gap_NX.sum(dim=1, keepdim=True)).exp().clamp(max=cap)


def uncertain_tokens(entropy_NL: torch.Tensor, quantile: float) -> torch.Tensor:
    """Bool [N, L]: the share ``quantile`` of tokens with the highest entropy (arXiv 2506.01939).

    The threshold is taken over one pass of all processes, as in trl: with ``micro_batch`` over a part of the step. A
    bonus is then the mean over those of them that a process holds, and processes hold unequal shares.
    """
    return entropy_NL >= entropy_NL.float().quantile(1 - quantile)


def drifted(
    logp_NL: torch.Tensor, old_logp_NL: torch.Tensor, advantages_N: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Bool [N, 1]: sequences with A < 0 that lost more than ``threshold`` nats per token (arXiv 2512.02556, eq. 9)."""
    drift_N1 = (old_logp_NL - logp_NL.detach()).mean(dim=1, keepdim=True)
    return (advantages_N[:, None] < 0) & (drift_N1 > threshold)


def next_entropy_coefficient(coefficient: float, mean_entropy: float, entropy: Entropy) -> float:
    """The weight of the bonus for the next step, with ``entropy.target`` (Skywork-OR1, arXiv 2505.22312)."""
    assert entropy.target is not None
    if mean_entropy <= entropy.target:
        return min(coefficient + entropy.step, entropy.high)
    return max(coefficient - entropy.step, entropy.low)


# ---- the loss --------------------------------------------------------------------------------------------------------


def grpo_loss(
    logp_NL: torch.Tensor,
    old_logp_NL: torch.Tensor,
    reference_logp_NL: torch.Tensor | None,
    advantages_N: torch.Tensor,
    algorithm: GrpoAlgorithm,
    entropy_NL: torch.Tensor | None = None,
    weights_NX: torch.Tensor | None = None,
    entropy_coefficient: float | None = None,
) -> GrpoLoss:
    """-J, to be minimised. Gradients flow into ``logp_NL``, and with a bonus into ``entropy_NL``.

    Args:
        reference_logp_NL: may be None when beta is 0.
        entropy_NL: of the policy at each place; needed with entropy.quantile or a bonus.
        weights_NX: ``importance_weights``.
        entropy_coefficient: c; default: entropy.bonus. With entropy.target it changes from step to step.
    """
    loss_NX = -surrogate(logp_NL, old_logp_NL, advantages_N, algorithm, weights_NX)
    if algorithm.off_policy_threshold is not None:
        loss_NX = loss_NX * ~drifted(logp_NL, old_logp_NL, advantages_N, algorithm.off_policy_threshold)
    counted_NL = torch.ones_like(logp_NL, dtype=torch.bool)
    if algorithm.entropy.quantile < 1.0:
        assert entropy_NL is not None
        counted_NL = uncertain_tokens(entropy_NL.detach(), algorithm.entropy.quantile)
        loss_NX = loss_NX * counted_NL
    kl = torch.zeros((), device=logp_NL.device)
    ratio_NX = policy_ratio(logp_NL, old_logp_NL, algorithm.ratio)
    if reference_logp_NL is not None and algorithm.beta > 0:
        kl_NL = k3_kl(logp_NL, reference_logp_NL)
        if algorithm.kl_bias_correction:
            kl_NL = kl_NL * ratio_NX
        loss_NX = loss_NX + algorithm.beta * kl_NL
        kl = kl_NL.mean().detach()
    loss = loss_NX.mean()
    if algorithm.loss == "luspo":
        loss = loss * logp_NL.shape[1]
    if algorithm.entropy.active:
        assert entropy_NL is not None
        weight = algorithm.entropy.bonus if entropy_coefficient is None else entropy_coefficient
        loss = loss - weight * entropy_NL[counted_NL].mean()
    clip_share = is_clipped(ratio_NX.detach(), advantages_N, algorithm.epsilon, algorithm.epsilon_high).float().mean()
    return GrpoLoss(loss, kl, clip_share)
