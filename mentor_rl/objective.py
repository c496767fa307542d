"""GRPO as small pure functions: the readable statement of what the trainer optimises.

The trainer lets trl compute this loss (trainer.py); tests/rl/test_objective.py holds trl to these functions, and these
functions to exact enumeration on a toy. Nothing here knows trl, models or pictures.

For a prompt q, G pictures o_1..o_G of L tokens are drawn from the policy, and (Shao et al. 2024, arXiv 2402.03300,
equation 3; picture tokens have a fixed length, so |o_i| = L)

    J = E 1/G sum_i 1/L sum_t  min(rho_it A_i, clip(rho_it, 1 - eps, 1 + eps_high) A_i) - beta D_it
    rho_it = pi(o_it | q, o_i<t) / pi_old(o_it | q, o_i<t)        the ratio, 1 while the policy is the one that sampled
    A_i    = (r_i - mean(r)) / (std(r) + 1e-4)                    the advantage within the group
    D_it   = pi_ref / pi - log(pi_ref / pi) - 1                   the estimator "k3" of KL(pi || pi_ref), never negative

Departures from that paper, each shared with trl's defaults:

- the ratio multiplies D (`bias_correction`): differentiating plain k3 on samples of pi follows KL(pi_ref || pi); with
  the ratio its expected gradient is that of KL(pi || pi_ref) at the visited prefixes (DeepSeek-V3.2, arXiv 2512.02556);
- several rewards are normalised one by one, summed by weight, then normalised over the batch (GDPO) unless
  `sum_then_normalize` is asked for;
- a missing score (NaN) is left out of the statistics of its group and adds nothing to its own sample.

`loss: grpo | bnpo | dr_grpo | dapo` differ only in how they weigh sequences of different lengths (mean of sequence
means, mean of tokens, tokens over a constant length, tokens over the global count). Pictures all have L tokens, so the
four are one and the same number: the mean over tokens.

Shapes: N samples, K prompts, G group size (N = K*G, group-contiguous), L image tokens, R rewards.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from mentor_rewards.aggregate import Aggregation, Scale, advantages


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


def policy_ratio(
    logp_NL: torch.Tensor, old_logp_NL: torch.Tensor, level: Literal["token", "sequence"] = "token"
) -> torch.Tensor:
    """rho: [N, L] per token; or [N, 1], the geometric mean over the sequence (GSPO, arXiv 2507.18071)."""
    log_ratio_NL = logp_NL - old_logp_NL
    return (log_ratio_NL if level == "token" else log_ratio_NL.mean(dim=1, keepdim=True)).exp()


def clipped_surrogate(
    ratio_NL: torch.Tensor, advantages_N: torch.Tensor, epsilon: float, epsilon_high: float | None = None
) -> torch.Tensor:
    """min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A), [N, L or 1], to be maximised."""
    high = epsilon if epsilon_high is None else epsilon_high
    advantages_N1 = advantages_N[:, None]
    return torch.minimum(ratio_NL * advantages_N1, ratio_NL.clamp(1 - epsilon, 1 + high) * advantages_N1)


def is_clipped(
    ratio_NL: torch.Tensor, advantages_N: torch.Tensor, epsilon: float, epsilon_high: float | None = None
) -> torch.Tensor:
    """Where the clip stops the gradient, [N, L or 1] bool: ratios already past the edge they are pushed to."""
    high = epsilon if epsilon_high is None else epsilon_high
    up_N1 = advantages_N[:, None] > 0
    down_N1 = advantages_N[:, None] < 0
    return (up_N1 & (ratio_NL > 1 + high)) | (down_N1 & (ratio_NL < 1 - epsilon))


def k3_kl(logp_NL: torch.Tensor, reference_logp_NL: torch.Tensor) -> torch.Tensor:
    """Per-token estimate of KL(pi || pi_ref) from samples of pi (Schulman 2020; equation 4 of the GRPO paper)."""
    log_inverse_NL = reference_logp_NL - logp_NL
    return log_inverse_NL.exp() - log_inverse_NL - 1


def grpo_loss(
    logp_NL: torch.Tensor,
    old_logp_NL: torch.Tensor,
    reference_logp_NL: torch.Tensor | None,
    advantages_N: torch.Tensor,
    *,
    beta: float,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    ratio: Literal["token", "sequence"] = "token",
    bias_correction: bool = True,
) -> GrpoLoss:
    """-J, to be minimised. ``reference_logp_NL`` may be None when beta is 0. Gradients flow into ``logp_NL`` only."""
    ratio_NL = policy_ratio(logp_NL, old_logp_NL, ratio)
    loss_NL = -clipped_surrogate(ratio_NL, advantages_N, epsilon, epsilon_high)
    kl = torch.zeros((), device=logp_NL.device)
    if reference_logp_NL is not None and beta > 0:
        kl_NL = k3_kl(logp_NL, reference_logp_NL)
        if bias_correction:
            kl_NL = kl_NL * ratio_NL
        loss_NL = loss_NL + beta * kl_NL
        kl = kl_NL.mean().detach()
    clip_share = is_clipped(ratio_NL.detach(), advantages_N, epsilon, epsilon_high).float().mean()
    return GrpoLoss(loss_NL.mean(), kl, clip_share)
