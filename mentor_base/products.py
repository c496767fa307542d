"""Products with weights, in the precision that the processor has units for.

A CPU without bfloat16 units (neither AVX-512 nor Arm's BF16) multiplies bfloat16 matrices in torch with plain loops:
at 64 rows and more, 5 to 9 times slower than float32 on one core of an AMD EPYC (Zen 3). There the operands are
widened, the product is taken in float32 and its result rounded once, which is what bfloat16 units do too. Weights stay
as they are.

A sampler multiplies the same weights by few rows hundreds of times. On a CPU it may have them ready (``prepared``):
widened once, and laid out as oneDNN reads them. At size B and 16 rows a step took .6 of the time in float32 and .4 in
bfloat16, at 64 rows .85 and .65 (two cores of an AMD EPYC). The copy is as large as the weights in float32.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

FEW_ROWS = 128  # beyond, oneDNN's layout gains nothing
LARGE = 1 << 20  # numbers of a weight from which on it gains something


def computing_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which products of tensors like ``x`` are taken: its own, or float32 where that has to stand in.

    Under autocast its own: torch would narrow the operands again.
    """
    if torch.is_autocast_enabled(x.device.type):
        return x.dtype
    emulated = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _cpu_has_bfloat16()
    return torch.float32 if emulated else x.dtype


class PreparedWeight:
    """A weight [outputs, inputs] as it is, made ready for products with few rows. Made by ``prepared``."""

    def __init__(self, weight: torch.Tensor, rows: int) -> None:
        self.dtype = weight.dtype
        self._wide = weight.detach().float()
        self._packed = weight.numel() >= LARGE and torch.backends.mkldnn.is_available()
        if self._packed:
            self._wide = torch.ops.mkldnn._reorder_linear_weight(self._wide, rows)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """As ``linear``."""
        if not self._packed:
            return F.linear(x.float(), self._wide).to(x.dtype)
        wide: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.float(), self._wide, None, "none", [], "")
        return wide.to(x.dtype)


Weight = torch.Tensor | PreparedWeight


def prepared(weight: torch.Tensor, rows: int) -> Weight:
    """The weight ready for many products with ``rows`` rows; itself where that gains nothing, or where another dtype, a
    GPU or an engine that deals weights out (ZeRO-3, FSDP) says how it is multiplied. No gradient flows to it.
    """
    dealt_out = type(weight) not in (torch.Tensor, nn.Parameter) or not weight.numel()
    if dealt_out or rows > FEW_ROWS or weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return weight
    widened = weight.dtype != torch.float32
    if computing_dtype(weight) != torch.float32 or not (widened or weight.numel() >= LARGE):
        return weight
    return PreparedWeight(weight, rows)


def linear(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """``F.linear`` without bias: x [..., inputs], weight [outputs, inputs] -> [..., outputs] in x's dtype."""
    if isinstance(weight, PreparedWeight):
        return weight.product(x)
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
