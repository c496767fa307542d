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

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from mentor_base.config import MentorConfig
from mentor_base.decoder_attention import Attend, Layout, PrefixAttention, ScoringAttention, StepAttention
from mentor_base.decoder_cache import DecoderCache, Tables
from mentor_base.prefix import Prefix
from mentor_base.products import Linear, PreparedWeight, prepared
from mentor_base.rope import cells, rotate, rotation

HEAD_GAIN = 16.0  # logits move 16 times as far through the codebook part of the head: its vectors have unit length

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
            ready = {layer: prepared(layer.weight, rows) for layer in layers}
            # the others are called: ZeRO-3 gathers a weight only around the call of its module
            cache.weights = {layer: weight for layer, weight in ready.items() if isinstance(weight, PreparedWeight)}
            cache.head = prepared(tables.head_VD, rows)
        x_KD = self._blocks(caption_RD, self._prefix_turns(prefix), PrefixAttention(layout, cache), layout)
        return x_KD.repeat_interleave(group_size, dim=0), cache

    def step(self, tokens_N: torch.Tensor, cache: DecoderCache) -> torch.Tensor:
        """The next token of each image -> hidden_ND that predicts the one after it. Moves the cache on."""
        if not cache.own:
            cache.reserve()
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
