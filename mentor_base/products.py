"""Products with weights, in the precision that the processor has units for.

A CPU without bfloat16 units (neither AVX-512 nor Arm's BF16) multiplies bfloat16 matrices in torch with plain loops:
at 64 rows and more, 5 to 9 times slower than float32 on one core of an AMD EPYC (Zen 3). There the operands are
widened, the product is taken in float32 and its result rounded once, which is what bfloat16 units do too. Weights stay
as they are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def computing_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which products of tensors like ``x`` are taken: its own, or float32 where that has to stand in.

    Under autocast its own: torch would narrow the operands again.
    """
    if torch.is_autocast_enabled(x.device.type):
        return x.dtype
    emulated = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _cpu_has_bfloat16()
    return torch.float32 if emulated else x.dtype


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``F.linear`` without bias: x [..., inputs], weight [outputs, inputs] -> [..., outputs] in x's dtype."""
    dtype = computing_dtype(weight)
    if dtype == weight.dtype:
        return F.linear(x, weight)
    return F.linear(x.to(dtype), weight.to(dtype)).to(x.dtype)


class Linear(nn.Linear):
    """``nn.Linear`` without bias whose product is ``linear``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight)


@torch.compiler.assume_constant_result  # a compiled step cannot ask
def _cpu_has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
