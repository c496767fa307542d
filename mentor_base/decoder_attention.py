"""Which rows of a pass see which: the three passes of the decoder differ in nothing else.

Prefix rows attend causally to their own prompt's prefix, image rows to their prompt's prefix and causally to their own
image. Padding is seen by nobody but itself.

A step of sampling has no mask but one number per prefix slot. The other passes have one boolean mask per prompt, shared
by heads and images: prompts of a batch differ in their padding, which the causal flag of fused kernels cannot say.

Shapes: K prompts, G images a prompt (N = K * G), T prefix slots, S image inputs of the pass, J image inputs so far, R
rows, H heads, d head width, D = H * d.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from mentor_base.decoder_cache import DecoderCache
from mentor_base.products import computing_dtype

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], torch.Tensor]  # q, k, v [R, H, d] -> mixed [R, D]


class Layout(NamedTuple):
    """Who is who among the rows of a pass: K * T prefix rows, then N * S image rows; and what prefix rows may see."""

    prompts: int
    slots: int
    group_size: int
    inputs: int
    mask_KT: torch.Tensor

    @property
    def prefix_rows(self) -> int:
        return self.prompts * self.slots

    def last(self, rows: torch.Tensor) -> torch.Tensor:
        """The last slot of each prefix, then all image rows."""
        prefix = rows[: self.prefix_rows].unflatten(0, (self.prompts, self.slots))[:, -1]
        return torch.cat([prefix, rows[self.prefix_rows :]]) if self.inputs else prefix

    def prefix_heads(self, rows_RHd: torch.Tensor) -> torch.Tensor:
        """Prefix rows as [K, H, T, d]."""
        return rows_RHd[: self.prefix_rows].unflatten(0, (self.prompts, self.slots)).transpose(1, 2)

    def image_heads(self, rows_RHd: torch.Tensor) -> torch.Tensor:
        """Image rows as [K, H, G, S, d]."""
        shape = (self.prompts, self.group_size, self.inputs)
        return rows_RHd[self.prefix_rows :].unflatten(0, shape).permute(0, 3, 1, 2, 4)

    def prefix_mask(self) -> torch.Tensor:
        """[K, 1, T, T] bool: causal and not padding; padding sees itself only, so that no row is empty."""
        square = torch.ones(self.slots, self.slots, dtype=torch.bool, device=self.mask_KT.device)
        eye = torch.eye(self.slots, dtype=torch.bool, device=self.mask_KT.device)
        return (square.tril() & self.mask_KT[:, None, None, :]) | eye


class PrefixAttention:
    """Prefix rows only (prefill). Their keys and values go into the cache, block after block."""

    def __init__(self, layout: Layout, cache: DecoderCache) -> None:
        self.layout, self.cache, self.mask = layout, cache, layout.prefix_mask()

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, last: bool) -> torch.Tensor:
        dtype = computing_dtype(q)
        q_KHTd, k_KHTd, v_KHTd = (self.layout.prefix_heads(x).to(dtype).contiguous() for x in (q, k, v))
        self.cache.prefix.append((k_KHTd, v_KHTd))
        return _prefix_attention(q_KHTd, k_KHTd, v_KHTd, self.mask, last).to(q.dtype)


class ScoringAttention:
    """Prefix rows and all image rows at once (teacher forcing)."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.mask = layout, layout.prefix_mask()
        own = torch.ones(layout.inputs, layout.inputs, dtype=torch.bool, device=layout.mask_KT.device).tril()
        shape = (layout.prompts, 1, layout.inputs)
        self.image_mask = torch.cat(
            [layout.mask_KT[:, None, None, :].expand(*shape, -1), own.expand(layout.prompts, 1, -1, -1)], dim=-1
        )

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, last: bool) -> torch.Tensor:
        prefix_q, prefix_k, prefix_v = (self.layout.prefix_heads(x) for x in (q, k, v))
        prefix_RD = _prefix_attention(prefix_q, prefix_k, prefix_v, self.mask, last)
        if not self.layout.inputs:
            return prefix_RD
        own_q, own_k, own_v = (self.layout.image_heads(x) for x in (q, k, v))
        keys = torch.cat([self._for_each_image(prefix_k), own_k], dim=3).flatten(1, 2)
        values = torch.cat([self._for_each_image(prefix_v), own_v], dim=3).flatten(1, 2)
        mixed = F.scaled_dot_product_attention(own_q.flatten(1, 2), keys, values, self.image_mask)
        image_RD = mixed.unflatten(1, own_q.shape[1:3]).permute(0, 2, 3, 1, 4).flatten(0, 2).flatten(1)
        return torch.cat([prefix_RD, image_RD])

    def _for_each_image(self, prefix_KHTd: torch.Tensor) -> torch.Tensor:
        """[K, H, G, T, d]: the images of a group stand in the place of heads, so that they share one mask.

        This repeats the prompt's keys, which is little beside the scores that the fused kernel then never stores:
        forward and backward took a quarter of the time of a product with the shared keys (32 images of 256 tokens,
        CPU).
        """
        return prefix_KHTd.unsqueeze(2).expand(-1, -1, self.layout.group_size, -1, -1)


class StepAttention:
    """One new row per image; keys and values go into the cache, whose blocks are visited in order."""

    def __init__(self, cache: DecoderCache) -> None:
        self.cache, self.block, self.own_bias = cache, 0, cache.own_bias()

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, last: bool) -> torch.Tensor:
        q_KHG1d, k_KHG1d, v_KHG1d = (self._grouped(x) for x in (q, k, v))
        prefix_k, prefix_v = self.cache.prefix[self.block]
        own_k, own_v = self.cache.put(self.block, k_KHG1d, v_KHG1d)
        self.block += 1
        mixed = group_attention(
            q_KHG1d.to(own_k.dtype), own_k, own_v, prefix_k, prefix_v, self.cache.prefix_bias, self.own_bias
        )
        return mixed.squeeze(3).transpose(1, 2).flatten(0, 1).flatten(1).to(q.dtype)

    def _grouped(self, rows_RHd: torch.Tensor) -> torch.Tensor:
        """[R, H, d] as [K, H, G, 1, d]."""
        return rows_RHd.unflatten(0, (-1, self.cache.group_size)).transpose(1, 2).unsqueeze(3)


def _prefix_attention(
    q_KHTd: torch.Tensor, k_KHTd: torch.Tensor, v_KHTd: torch.Tensor, mask: torch.Tensor, last: bool
) -> torch.Tensor:
    if last:
        q_KHTd, mask = q_KHTd[:, :, -1:], mask[:, :, -1:]
    mixed = F.scaled_dot_product_attention(q_KHTd, k_KHTd, v_KHTd, mask)
    return mixed.transpose(1, 2).flatten(0, 1).flatten(1)


def group_attention(
    q_KHGSd: torch.Tensor,
    own_k: torch.Tensor,
    own_v: torch.Tensor,
    prefix_k: torch.Tensor,
    prefix_v: torch.Tensor,
    bias: torch.Tensor,
    own_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """New image rows over the group's shared prefix [K, H, T, d] and their own keys and values [K, H, G, J, d].

    The queries of a whole group are rows of one product with the prompt's keys: nothing is copied per image. ``bias``
    [K, 1, 1, T] is 0 at valid prefix slots and -inf at padding; all of J is seen, unless ``own_bias`` [J] says not.
    """
    slots = prefix_k.shape[2]
    scaled = q_KHGSd * (q_KHGSd.shape[-1] ** -0.5)
    over_prefix = scaled.flatten(2, 3) @ prefix_k.transpose(-1, -2)  # [K, H, G*S, T]
    over_own = scaled @ own_k.transpose(-1, -2)  # [K, H, G, S, J]
    if own_bias is not None:
        over_own = over_own + own_bias
    scores = torch.cat([(over_prefix + bias).unflatten(2, q_KHGSd.shape[2:4]), over_own], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q_KHGSd.dtype)
    from_prefix = weights[..., :slots].flatten(2, 3) @ prefix_v
    return from_prefix.view_as(q_KHGSd) + weights[..., slots:] @ own_v
