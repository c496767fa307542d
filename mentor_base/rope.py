"""Rotary position embedding over two axes: the one version of the house.

Of a head's width h, the first h/4 pairs turn with the row, the next h/4 with the column; pairs are interleaved
(2j, 2j+1); pair k of an axis turns by base^(-2k / (h/2)) per cell (LlamaGen, ``precompute_freqs_cis_2d``). Cell (0, 0)
is the identity, which is also the rotation of every prefix slot that has no cell.

A rotation is kept as unit complex numbers: one multiplication turns a pair.
Shapes: R rows (any leading shape), h width of a head.
"""

from __future__ import annotations

import torch


def rotation(positions_R2: torch.Tensor, head_dim: int, base: float) -> torch.Tensor:
    """Cells (row, column), fractions allowed -> unit complex rotation [..., h/2], complex64."""
    quarter = head_dim // 4
    steps = torch.arange(quarter, device=positions_R2.device, dtype=torch.float32)
    frequencies = base ** (-2.0 * steps / (head_dim // 2))
    angles = positions_R2.float().unsqueeze(-1) * frequencies  # [..., 2, h/4]
    angles_Rh = angles.flatten(-2)
    return torch.polar(torch.ones_like(angles_Rh), angles_Rh)


def rotate(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn x [..., h] by ``turn`` [..., h/2] (broadcast); computed in float32, given back in x's dtype."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def cells(grid: int, device: torch.device | None = None) -> torch.Tensor:
    """(row, column) of the cells of a square grid, row-major: [grid * grid, 2], float32."""
    index = torch.arange(grid * grid, device=device)
    return torch.stack([index // grid, index % grid], dim=-1).float()
