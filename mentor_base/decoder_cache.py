"""What the decoder keeps from one step of sampling to the next.

Shapes: K prompts, G images a prompt (N = K * G), T prefix slots, L image tokens, J image inputs so far, H heads, d head
width, D width, V codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from mentor_base.products import PreparedWeight, Weight


class Tables(NamedTuple):
    """Plain token embedding and output head, whatever they are made of."""

    embedding_VD: torch.Tensor
    head_VD: torch.Tensor


@dataclass
class DecoderCache:
    """Keys and values while sampling; all sizes are fixed when the prefix is read.

    Attributes:
        prefix: per block, keys and values [K, H, T, d] of the prompts, shared by their groups.
        own: per block, keys and values [K, H, G, L, d] of the images so far; empty before the first step (``reserve``).
        prefix_bias: 0 at valid prefix slots, -inf at padding: [K, 1, 1, T].
        position: image inputs seen so far.
        tables: of the model that made the cache.
        head: its output head [V, D], perhaps ready for few rows (products.py).
        weights: of those products of the blocks that are ready for few rows.
        turns: rotation of each image input [L, d/2].
        place: [1], long, on the device: stands in for ``position`` where a step has to have static shapes
            (decode_graph.py), and is moved on by the caller; attention then reads ``window`` slots, masked after place.
    """

    group_size: int
    length: int
    prefix_bias: torch.Tensor
    tables: Tables
    head: Weight
    turns: torch.Tensor
    weights: dict[nn.Module, PreparedWeight] = field(default_factory=dict)
    position: int = 0
    place: torch.Tensor | None = None
    window: int = 0
    prefix: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    own: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def reserve(self) -> None:
        """Make room for the images. Not while the prefix is read: an engine works on in the room of its first call.

        Zeros, since what a window masks is multiplied by 0 nevertheless, which NaN would survive.
        """
        for keys, values in self.prefix:
            prompts, heads, _, width = keys.shape
            shape = (prompts, heads, self.group_size, self.length, width)
            self.own.append((keys.new_zeros(shape), values.new_zeros(shape)))

    def product(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        weight = self.weights.get(layer)
        return layer(x) if weight is None else weight.product(x)

    def turn(self) -> torch.Tensor:
        """Rotation of the coming image input."""
        return self.turns[self.position] if self.place is None else self.turns.index_select(0, self.place)

    def put(self, block: int, k_KHG1d: torch.Tensor, v_KHG1d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the coming input's keys and values -> all that it may see [K, H, G, J, d]."""
        kept, new = self.own[block], (k_KHG1d, v_KHG1d)
        if self.place is None:
            end = self.position + 1
            for cache, x in zip(kept, new, strict=True):
                cache[:, :, :, self.position : end] = x
            return kept[0][:, :, :, :end], kept[1][:, :, :, :end]
        for cache, x in zip(kept, new, strict=True):
            cache.index_copy_(3, self.place, x.to(cache.dtype))
        return kept[0][:, :, :, : self.window], kept[1][:, :, :, : self.window]

    def own_bias(self) -> torch.Tensor | None:
        """What to add to scores over ``put``'s keys: nothing, or -inf at those of a window that are yet to come."""
        if self.place is None:
            return None
        slots = torch.arange(self.window, device=self.place.device)
        return torch.where(slots <= self.place, 0.0, -math.inf)
