"""The gap: the trainer's log-prob of a drawn token less the sampler's own, in nats. Free of trl.

Shapes: N samples of a pass, L image tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mentor_base.errors import UserError

# Largest gap of a token without guidance. Both passes use the same weights: what is left is rounding, which guidance
# and a low temperature scale up with the logits. bf16: a prototype of 3M parameters measured .17 at most.
GAP_TOLERANCE = {"float32": 1e-3, "bf16": 0.2}
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Gap:
    """Gathers the gaps of all passes since the last ``metrics``."""

    def __init__(self) -> None:
        self._passes: list[torch.Tensor] = []

    def record(self, logp_NL: torch.Tensor, sampler_logp_NL: torch.Tensor) -> torch.Tensor:
        """The gaps of one pass, [N, L]."""
        gap_NL = logp_NL - sampler_logp_NL
        self._passes.append(gap_NL)
        return gap_NL

    def metrics(self, gathered: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """``gap/...``: sizes over all processes; ``ratio/...``: importance ratios pi_trainer / pi_sampler of tokens.

        Starts anew. Empty where nothing was compared.

        Args:
            gathered: puts together the rows of all processes.
        """
        if not self._passes:
            return {}
        gap_NL = gathered(torch.cat(self._passes)).double()
        self._passes = []
        size, ratio_NL = gap_NL.abs().flatten(), gap_NL.exp()
        quantiles = size.quantile(torch.tensor(list(QUANTILES.values())).to(size)).tolist()
        return {
            "gap/mean": size.mean().item(),
            "gap/max": size.max().item(),
            **{f"gap/{name}": value for name, value in zip(QUANTILES, quantiles, strict=True)},
            "ratio/mean": ratio_NL.mean().item(),
            "ratio/max": ratio_NL.max().item(),
        }


def check_gap(gap_NL: torch.Tensor, precision: str, amplified: float, step: int) -> None:
    """Refuse to optimise another policy than the one that was sampled.

    Args:
        precision: "float32" or "bf16", the coarser one of the two passes.
        amplified: how much guidance and temperature scale up differences of logits; at least 1.

    Raises:
        UserError: a gap beyond rounding, or one that is no number.
    """
    size_NL, tolerance = gap_NL.abs(), GAP_TOLERANCE[precision] * amplified
    if not size_NL.max() <= tolerance:
        raise UserError(
            f"step {step}: the trainer's log-probs of the drawn tokens differ from the sampler's by "
            f"{size_NL.mean():.2g} on average and {size_NL.max():.2g} at most, expected at most {tolerance:g}: "
            "the policy that would be optimised is not the one that was sampled"
        )
