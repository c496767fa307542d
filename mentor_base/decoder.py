"""The LlamaGen decoder (arXiv 2406.06525), with a prefix that a group of images shares.

Shapes: K prompts, G images a prompt (N = K * G, group-contiguous), T prefix slots (left-padded), L image tokens,
S image inputs in play (L - 1 when scoring, 1 when sampling), R rows, D width, H heads, d head width, V codes,
C width of the prefix features.

Every operation but attention works on rows, so prefix rows (K * T of them) and image rows (N * S) go through a block as
one matrix, and only attention tells them apart: prefix rows attend causally to their own prompt's prefix, image rows
to their prompt's prefix and causally to their own image. Nothing of the prefix is ever computed once per image. In the
last block only the last prefix slot, which predicts token 0, goes on beyond its keys and values.

Against LlamaGen: the prefix is not padded to ``context_length`` but to the longest prompt of the batch (same numbers:
no absolute position touches the prefix); w1 and w3 are one matrix. Options: see config.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from mentor_base.config import MentorConfig
from mentor_base.products import Linear, Weight, computing_dtype, linear, prepared
from mentor_base.rope import cells, rotate, rotation

HEAD_GAIN = 16.0  # logits move 16 times as far through the codebook part of the head: its vectors have unit length


class Prefix(NamedTuple):
    """What the encoder makes of prompts, and all that the decoder knows about them.

    Attributes:
        features_KTC: encoder output, before the caption projection; left-padded.
        mask_KT: bool, False at padding.
        positions_KT2: cell whose rotation a slot carries, (0, 0) = identity.
    """

    features_KTC: torch.Tensor
    mask_KT: torch.Tensor
    positions_KT2: torch.Tensor

    def rows(self, index: torch.Tensor | slice) -> Prefix:
        """Some prompts of the batch."""
        return Prefix(self.features_KTC[index], self.mask_KT[index], self.positions_KT2[index])

    def detach(self) -> Prefix:
        return self._replace(features_KTC=self.features_KTC.detach())

    def to(self, device: torch.device | str) -> Prefix:
        return Prefix(*(part.to(device) for part in self))

    @staticmethod
    def join(parts: list[Prefix]) -> Prefix:
        """One batch of several; padded on the left to the longest."""
        longest = max(part.mask_KT.shape[1] for part in parts)

        def padded(part: Prefix) -> Prefix:
            gap = longest - part.mask_KT.shape[1]
            return Prefix(
                F.pad(part.features_KTC, (0, 0, gap, 0)),
                F.pad(part.mask_KT, (gap, 0)),
                F.pad(part.positions_KT2, (0, 0, gap, 0)),
            )

        return Prefix(*(torch.cat(columns) for columns in zip(*map(padded, parts), strict=True)))


class Tables(NamedTuple):
    """Plain token embedding and output head, whatever they are made of."""

    embedding_VD: torch.Tensor
    head_VD: torch.Tensor


@dataclass
class DecoderCache:
    """Keys and values while sampling; all sizes are fixed when the prefix is read.

    Attributes:
        prefix: per block, keys and values [K, H, T, d] of the prompts, shared by their groups.
        own: per block, keys and values [K, H, G, L, d] of the images so far.
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
    weights: dict[nn.Module, Weight] = field(default_factory=dict)
    position: int = 0
    place: torch.Tensor | None = None
    window: int = 0
    prefix: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    own: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def product(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        weight = self.weights.get(layer)
        return layer(x) if weight is None else linear(x, weight)

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


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], torch.Tensor]  # q, k, v [R, H, d] -> mixed [R, D]
Keep = Callable[[torch.Tensor], torch.Tensor]
Product = Callable[[nn.Module, torch.Tensor], torch.Tensor]  # layer, rows -> the layer's output


def plain_product(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = layer(x)
    return output


class RMSNorm(nn.Module):
    """Root-mean-square norm; normalised in float32, cast back, then scaled."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class CaptionProjection(nn.Module):
    """Encoder width -> decoder width: linear, GELU (tanh form), linear; no biases."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(inputs, width)
        self.fc2 = Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))


class Block(GradientCheckpointingLayer):
    """Pre-norm attention and SwiGLU over rows; ``attend`` knows which rows see which.

    transformers' base class lets the Trainer switch gradient checkpointing on.
    """

    def __init__(self, config: MentorConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.attention_norm = RMSNorm(width, config.rms_norm_eps)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.ffn_norm = RMSNorm(width, config.rms_norm_eps)
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(
        self,
        x_RD: torch.Tensor,
        turns: torch.Tensor,
        attend: Attend,
        kept: Keep | None,
        product: Product = plain_product,
    ) -> torch.Tensor:
        """``kept`` (last block only) picks the rows whose output is wanted; ``attend`` gives those alone."""
        qkv = product(self.qkv, self.attention_norm(x_RD)).unflatten(-1, (3, self.heads, -1))
        q, k = rotate(qkv[:, :2], turns).unbind(1)
        mixed_RD = attend(q, k, qkv[:, 2], kept is not None)
        if kept is not None:
            x_RD = kept(x_RD)
        x_RD = x_RD + self._drop(product(self.out, mixed_RD))
        gate, up = product(self.gate_up, self.ffn_norm(x_RD)).chunk(2, dim=-1)
        return x_RD + self._drop(product(self.down, F.silu(gate) * up))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout and self.training else x


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
    """Prefix rows only (prefill). Fills the cache, block after block."""

    def __init__(self, layout: Layout, cache: DecoderCache) -> None:
        self.layout, self.cache, self.mask = layout, cache, layout.prefix_mask()

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, last: bool) -> torch.Tensor:
        dtype = computing_dtype(q)
        q_KHTd, k_KHTd, v_KHTd = (self.layout.prefix_heads(x).to(dtype).contiguous() for x in (q, k, v))
        prompts, heads, _, width = k_KHTd.shape
        own = (prompts, heads, self.cache.group_size, self.cache.length, width)
        self.cache.prefix.append((k_KHTd, v_KHTd))
        self.cache.own.append((k_KHTd.new_empty(own), v_KHTd.new_empty(own)))
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


class Decoder(nn.Module):
    """Prefix features and image tokens -> hidden states after the last norm; row l predicts token l."""

    def __init__(self, config: MentorConfig) -> None:
        super().__init__()
        width, codes = config.hidden_size, config.vocab_size
        self.config = config
        self.cap_proj = CaptionProjection(config.text_width, width)
        table = torch.randn(config.context_length, config.text_width) / math.sqrt(config.text_width)
        if config.uncond == "learned":
            self.uncond = nn.Parameter(table)
        else:
            self.register_buffer("uncond", table)
        self.embedding = nn.Embedding(codes, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.head = Linear(width, codes)
        if config.factorised_codebook:
            self.codebook_in = nn.Linear(config.vq_config.codebook_width, width, bias=False)
            self.codebook_out = nn.Linear(width, config.vq_config.codebook_width, bias=False)

    def tables(self, codebook_VK: torch.Tensor) -> Tables:
        """The plain tables; with ``factorised_codebook`` folded together from their parts."""
        if not self.config.factorised_codebook:
            return Tables(self.embedding.weight, self.head.weight)
        codebook = codebook_VK.to(self.embedding.weight.dtype)
        with torch.autocast(codebook.device.type, enabled=False):
            return Tables(
                self.embedding.weight + self.codebook_in(codebook),
                self.head.weight + HEAD_GAIN * (codebook @ self.codebook_out.weight),
            )

    def unconditional(self, prefix: Prefix) -> Prefix:
        """The same prompts with nothing said: the table's last T rows under the same mask and positions.

        A prefix may be padded beyond the table (decode_graph.py).
        """
        slots = prefix.mask_KT.shape[1]
        table = F.pad(self.uncond, (0, 0, max(0, slots - len(self.uncond)), 0))[-slots:].to(prefix.features_KTC.dtype)
        return prefix._replace(features_KTC=table.expand_as(prefix.features_KTC))

    def with_drop(self, prefix: Prefix, drop_K: torch.Tensor) -> Prefix:
        """The prompts where ``drop_K`` is True lose their features (not their mask), as in training for guidance."""
        features = torch.where(drop_K[:, None, None], self.unconditional(prefix).features_KTC, prefix.features_KTC)
        return prefix._replace(features_KTC=features)

    def hidden(self, prefix: Prefix, tokens_NL: torch.Tensor, group_size: int, tables: Tables) -> torch.Tensor:
        """Teacher forcing -> hidden_NLD. The prefix is computed once per prompt, for its whole group."""
        (prompts, slots), (count, length) = prefix.mask_KT.shape, tokens_NL.shape
        layout = Layout(prompts, slots, group_size, length - 1, prefix.mask_KT)
        caption_RD = self._caption(prefix)
        inputs_RD = F.embedding(tokens_NL[:, :-1].flatten(), tables.embedding_VD)
        turns = torch.cat([self._prefix_turns(prefix), self._image_turns(length)[: length - 1].repeat(count, 1)])
        rows = self._blocks(torch.cat([caption_RD, inputs_RD]), turns, ScoringAttention(layout), layout)
        first = rows[:prompts].repeat_interleave(group_size, dim=0).unsqueeze(1)
        return torch.cat([first, rows[prompts:].unflatten(0, (count, length - 1))], dim=1)

    def prefill(
        self, prefix: Prefix, group_size: int, tables: Tables, prepare: bool = False
    ) -> tuple[torch.Tensor, DecoderCache]:
        """Read the prompts -> hidden_ND for token 0, and the cache for ``step``.

        ``prepare``: have the weights ready for the steps (products.py); they must not change while the cache is used.
        """
        prompts, slots = prefix.mask_KT.shape
        layout = Layout(prompts, slots, group_size, 0, prefix.mask_KT)
        caption_RD = self._caption(prefix)
        bias = torch.zeros_like(prefix.mask_KT, dtype=caption_RD.dtype).masked_fill(~prefix.mask_KT, -math.inf)
        length = self.config.image_tokens
        bias_K11T, turns = bias[:, None, None, :], self._image_turns(length)
        cache = DecoderCache(group_size, length, bias_K11T, tables, tables.head_VD, turns)
        if prepare:
            rows = prompts * group_size
            layers = [layer for block in self.blocks for layer in block.children() if isinstance(layer, Linear)]
            cache.weights = {layer: prepared(layer.weight, rows) for layer in layers}
            cache.head = prepared(tables.head_VD, rows)
        x_KD = self._blocks(caption_RD, self._prefix_turns(prefix), PrefixAttention(layout, cache), layout)
        return x_KD.repeat_interleave(group_size, dim=0), cache

    def step(self, tokens_N: torch.Tensor, cache: DecoderCache) -> torch.Tensor:
        """The next token of each image -> hidden_ND that predicts the one after it. Moves the cache on."""
        x_ND = F.embedding(tokens_N, cache.tables.embedding_VD)
        attend, turn = StepAttention(cache), cache.turn()
        for block in self.blocks:
            x_ND = block(x_ND, turn, attend, None, cache.product)
        if cache.place is None:
            cache.position += 1
        return self.norm(x_ND)

    def _blocks(self, rows: torch.Tensor, turns: torch.Tensor, attend: Attend, layout: Layout) -> torch.Tensor:
        if self.config.dropout and self.training:
            rows = F.dropout(rows, self.config.dropout)
        turns = turns[:, None, None, :]
        for block in self.blocks:
            kept = layout.last if block is self.blocks[-1] else None
            rows = block(rows, turns, attend, kept)
        return self.norm(rows)

    def _caption(self, prefix: Prefix) -> torch.Tensor:
        """Prefix features as decoder rows [K * T, D], in the weights' dtype also under autocast (as the token rows)."""
        weight = self.cap_proj.fc1.weight
        return self.cap_proj(prefix.features_KTC.to(weight.dtype)).flatten(0, 1).to(weight.dtype)

    def _prefix_turns(self, prefix: Prefix) -> torch.Tensor:
        turns = rotation(prefix.positions_KT2, self.config.head_dim, self.config.rope_theta).flatten(0, 1)
        return turns * 0 if self.config.prefix_rotation == "zero" else turns

    def _image_turns(self, length: int) -> torch.Tensor:
        """Rotation of image inputs 0..L-1 [L, d/2]. The last input is never fed; with "target" it has no cell."""
        positions = cells(self.config.grid, self.embedding.weight.device)
        if self.config.image_positions == "target":
            positions = positions.roll(-1, dims=0)
        return rotation(positions[:length], self.config.head_dim, self.config.rope_theta)
