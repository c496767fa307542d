"""The gap: by how much the trainer's log-prob of a drawn token differs from the sampler's own. Free of trl.

Shapes: N samples of a pass, L image tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mentor_base.errors import UserError

# Largest gap of a token. Both passes use the same weights: what is left is rounding. bf16: a prototype of 3M parameters
# measured .17 at most.
GAP_TOLERANCE = {"float32": 1e-3, "bf16": 0.2}


class Gap:
    """Gathers the gaps of all passes since the last ``metrics``."""

    def __init__(self) -> None:
        self._passes: list[torch.Tensor] = []

    def record(self, logp_NL: torch.Tensor, sampler_logp_NL: torch.Tensor) -> torch.Tensor:
        """The gaps of one pass, [N, L]."""
        gap_NL = (logp_NL - sampler_logp_NL).abs()
        self._passes.append(torch.stack([gap_NL.sum(), torch.tensor(gap_NL.numel()).to(gap_NL), gap_NL.max()]))
        return gap_NL

    def metrics(self, gathered: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """``gap/mean`` and ``gap/max`` over all processes, in nats; starts anew. Empty where nothing was compared.

        Args:
            gathered: puts together the rows of all processes.
        """
        if not self._passes:
            return {}
        passes_P3 = torch.stack(self._passes)
        total, count, _ = passes_P3.sum(0).tolist()
        self._passes = []
        mine = torch.tensor([[total, count, passes_P3[:, 2].max().item()]], dtype=torch.float64)
        of_all = gathered(mine)
        return {"gap/mean": (of_all[:, 0].sum() / of_all[:, 1].sum()).item(), "gap/max": of_all[:, 2].max().item()}


def check_gap(gap_NL: torch.Tensor, precision: str, step: int) -> None:
    """Refuse to optimise another policy than the one that was sampled.

    Args:
        precision: "float32" or "bf16", of both passes.

    Raises:
        UserError: a gap beyond rounding, or one that is no number.
    """
    tolerance = GAP_TOLERANCE[precision]
    if not gap_NL.max() <= tolerance:
        raise UserError(
            f"step {step}: the trainer's log-probs of the drawn tokens differ from the sampler's by "
            f"{gap_NL.mean():.2g} on average and {gap_NL.max():.2g} at most, expected at most {tolerance:g}: "
            "the policy that would be optimised is not the one that was sampled"
        )
