"""The one place that turns hidden states into a distribution over image codes.

Sampling and training both come here, so that the policy that is optimised is the policy that was sampled. Guidance is
linear in the logits, l = u + s (c - u), and the head is linear in the hidden states (which are past the last norm), so
mixing hidden states first gives the same logits for one vocabulary product instead of two.

Shapes: any leading shape "..."; N samples, L tokens, D width, V codes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mentor_base.products import linear
from mentor_base.settings import Sampling

CHUNK_ROWS = 4096


class TokenLogProbs(NamedTuple):
    """Attributes: logp_NL: of each token, float32. entropy_NL: of the distribution at each place, without gradient."""

    logp_NL: torch.Tensor
    entropy_NL: torch.Tensor


def policy_logits(
    hidden_cond: torch.Tensor, hidden_uncond: torch.Tensor | None, head_weight_VD: torch.Tensor, sampling: Sampling
) -> torch.Tensor:
    """Hidden states [..., D] -> logits [..., V], float32, after guidance, temperature, top-k and top-p, in this order.

    Raises:
        ValueError: guidance without the unconditional half.
    """
    mixed = _mixed(hidden_cond, hidden_uncond, sampling)
    logits = linear(mixed.to(head_weight_VD.dtype), head_weight_VD).float()
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    return _filtered(logits, sampling) if sampling.filtered else logits


def token_logprobs(
    hidden_cond_NLD: torch.Tensor,
    hidden_uncond_NLD: torch.Tensor | None,
    tokens_NL: torch.Tensor,
    head_weight_VD: torch.Tensor,
    sampling: Sampling,
    chunk: int = CHUNK_ROWS,
    entropy: bool = True,
) -> TokenLogProbs:
    """Log-probabilities of given tokens under ``policy_logits``, ``chunk`` rows of logits at a time.

    With more than one chunk the logits are made again in the backward pass, so that no [N, L, V] block ever exists.
    Without ``entropy`` the field is filled with NaN.
    """
    width = hidden_cond_NLD.shape[-1]
    cond = hidden_cond_NLD.reshape(-1, width).split(chunk)
    uncond = [None] * len(cond) if hidden_uncond_NLD is None else hidden_uncond_NLD.reshape(-1, width).split(chunk)
    again = len(cond) > 1 and torch.is_grad_enabled()
    parts = []
    for c, u, tokens in zip(cond, uncond, tokens_NL.reshape(-1).split(chunk), strict=True):
        arguments = (c, u, tokens, head_weight_VD, sampling, entropy)
        parts.append(checkpoint(_rows, *arguments, use_reentrant=False) if again else _rows(*arguments))
    logp, spread = (torch.cat(column).view(tokens_NL.shape) for column in zip(*parts, strict=True))
    return TokenLogProbs(logp, spread)


def _rows(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    tokens: torch.Tensor,
    head_weight: torch.Tensor,
    sampling: Sampling,
    entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = policy_logits(cond, uncond, head_weight, sampling)
    logp = -F.cross_entropy(logits, tokens, reduction="none")
    if not entropy:
        return logp, torch.full_like(logp, math.nan)
    with torch.no_grad():
        spread = torch.special.entr(logits.softmax(-1)).sum(-1)
    return logp, spread


def _mixed(cond: torch.Tensor, uncond: torch.Tensor | None, sampling: Sampling) -> torch.Tensor:
    if not sampling.guided:
        return cond
    if uncond is None:
        raise ValueError(f"guidance {sampling.guidance_scale} needs the unconditional hidden states")
    u = uncond.float()
    return u + sampling.guidance_scale * (cond.float() - u)


def _filtered(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """-inf outside the ``top_k`` best codes, then outside the smallest set of codes that holds ``top_p``."""
    if 0 < sampling.top_k < logits.shape[-1]:
        worst = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < worst, -math.inf)
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= sampling.top_p  # mass before a code; the first one stays
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -math.inf)
    return logits
