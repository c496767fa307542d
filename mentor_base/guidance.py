"""The one place that turns hidden states into a distribution over image codes.

Sampling and training both come here, so that the policy that is optimised is the policy that was sampled. Guidance is
linear in the logits, l = u + s (c - u), and the head is linear in the hidden states (which are past the last norm), so
mixing hidden states first gives the same logits for one vocabulary product instead of two.

Shapes: any leading shape "..."; N samples, L tokens, D width, V codes.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mentor_base.products import Weight, linear
from mentor_base.settings import Sampling

CHUNK_ROWS = 4096


EntropyMode = Literal["none", "value", "gradient"]


class TokenLogProbs(NamedTuple):
    """Attributes: logp_NL: of each token, float32. entropy_NL: of the distribution at each place (nats)."""

    logp_NL: torch.Tensor
    entropy_NL: torch.Tensor


def policy_logits(
    hidden_cond: torch.Tensor,
    hidden_uncond: torch.Tensor | None,
    head_weight_VD: Weight,
    sampling: Sampling,
    scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states [..., D] -> logits [..., V], float32, after guidance, temperature, top-k and top-p, in this order.

    ``scales`` [..., 1], where rows have each their own, take the place of ``sampling.guidance_scale``.

    Raises:
        ValueError: guidance without the unconditional half.
    """
    mixed = _mixed(hidden_cond, hidden_uncond, sampling, scales)
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
    entropy: EntropyMode = "value",
    scales_N: torch.Tensor | None = None,
) -> TokenLogProbs:
    """Log-probabilities of given tokens under ``policy_logits``, ``chunk`` rows of logits at a time.

    With more than one chunk the logits are made again in the backward pass, so that no [N, L, V] block ever exists.
    ``entropy``: "none" fills the field with NaN; "gradient" is for a loss that has the entropy in it.
    ``scales_N``: guidance scales of the samples, in place of ``sampling.guidance_scale``.
    """
    width = hidden_cond_NLD.shape[-1]
    cond = hidden_cond_NLD.reshape(-1, width).split(chunk)
    uncond = [None] * len(cond) if hidden_uncond_NLD is None else hidden_uncond_NLD.reshape(-1, width).split(chunk)
    scales = [None] * len(cond)
    if scales_N is not None:
        scales = scales_N.repeat_interleave(tokens_NL.shape[1])[:, None].split(chunk)
    again = len(cond) > 1 and torch.is_grad_enabled()
    parts = []
    for c, u, s, tokens in zip(cond, uncond, scales, tokens_NL.reshape(-1).split(chunk), strict=True):
        arguments = (c, u, s, tokens, head_weight_VD, sampling, entropy)
        parts.append(checkpoint(_rows, *arguments, use_reentrant=False) if again else _rows(*arguments))
    logp, spread = (torch.cat(column).view(tokens_NL.shape) for column in zip(*parts, strict=True))
    return TokenLogProbs(logp, spread)


def _rows(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    scales: torch.Tensor | None,
    tokens: torch.Tensor,
    head_weight: torch.Tensor,
    sampling: Sampling,
    entropy: EntropyMode,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = policy_logits(cond, uncond, head_weight, sampling, scales)
    logp = -F.cross_entropy(logits, tokens, reduction="none")
    if entropy == "none":
        return logp, torch.full_like(logp, math.nan)
    if entropy == "value":
        with torch.no_grad():
            return logp, torch.special.entr(logits.softmax(-1)).sum(-1)
    every = logits.log_softmax(-1)  # entr has no finite slope at a probability that underflowed to 0
    return logp, -(every.exp() * every).sum(-1)


def _mixed(
    cond: torch.Tensor, uncond: torch.Tensor | None, sampling: Sampling, scales: torch.Tensor | None
) -> torch.Tensor:
    if scales is None and not sampling.guided:
        return cond
    if uncond is None:
        raise ValueError(f"guidance {sampling.guidance_scale} needs the unconditional hidden states")
    u = uncond.float()
    return u + (sampling.guidance_scale if scales is None else scales) * (cond.float() - u)


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
