"""The reference sampler's way of working, re-created so that it can be timed beside ours on the same weights.

Written from the facts about LlamaGen's ``generate.py`` and ``gpt.py`` (LlamaGen ce98ec4; MENTOR 59a091a, which uses
them unchanged), not from their text. It draws what our sampler draws. What makes it slow is theirs, and all of it:

- caches of the full length, and a mask of [2N, S, S], allocated anew in every call (``setup_caches``);
- attention over the full length at each step, the unfilled part masked, with the materialised mask and torch's math
  kernel forced (generate.py:115);
- keys and values copied at each step by ``repeat_interleave`` over heads, also where there is one query head per key;
- the prefix of every picture encoded for itself: pictures of one prompt share nothing, padding is never trimmed;
- logits at all prefix slots in the prefill, though only the last is used;
- logits of both halves, mixed after the head; all probabilities [N, V] of all steps kept, and unused.

What it shares with ours: both halves of guidance in one batch, no synchronisation per token, and the choice of a token:
greedy, or by the same uniform numbers (theirs is ``torch.multinomial``, which draws a number per code and is slower).
Products are torch's own in every dtype, as theirs are: products.py stands in for them in our code alone.

Shapes: N pictures, T prefix slots, S = T + L slots in all, I inputs of a pass, R = 2N rows (guided) or N, D width,
H heads, d head width, V codes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mentor_base.decoder import Block, Decoder, RMSNorm
from mentor_base.generate import draw_tokens
from mentor_base.prefix import Prefix
from mentor_base.rope import cells, rotation

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # q, k, v [R, H, I, d] -> the same


class ReferenceSampler:
    """Decoding of N pictures in the reference's way, one ``prefill`` and L - 1 ``step`` calls.

    Args:
        decoder: whose weights are used; a plain codebook, prefix slots without rotation, image inputs at their own
            cells, as in the reference.
        guidance_scale: 1 leaves the unconditional half out.
        uniforms_NL: decide the draws, as in ``generate``; None: greedy.
    """

    def __init__(self, decoder: Decoder, guidance_scale: float, uniforms_NL: torch.Tensor | None = None) -> None:
        check_plain(decoder)
        self.decoder, self.scale, self.uniforms_NL = decoder, guidance_scale, uniforms_NL
        self.caches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.probabilities: list[torch.Tensor] = []

    def prefill(self, prefix: Prefix) -> torch.Tensor:
        """Prefixes of all N pictures, each for itself -> token 0 [N, 1]. Allocates caches, mask and rotations."""
        rows, (_, slots) = self._with_unconditional(prefix), prefix.mask_KT.shape
        self._set_up(rows.mask_KT, slots + self.decoder.config.image_tokens)
        captions = captions_of(self.decoder, rows.features_KTC)
        return self._choose(self._forward(captions, torch.arange(slots, device=captions.device)))

    def step(self, tokens_N1: torch.Tensor, position: int) -> torch.Tensor:
        """Picture input ``position`` of each picture -> the token after it [N, 1]."""
        fed = torch.cat([tokens_N1, tokens_N1]) if self.scale != 1.0 else tokens_N1
        inputs = F.embedding(fed, self.decoder.embedding.weight)
        return self._choose(self._forward(inputs, torch.tensor([self.slots + position], device=inputs.device)))

    def _with_unconditional(self, prefix: Prefix) -> Prefix:
        if self.scale == 1.0:
            return prefix
        both = (prefix, self.decoder.unconditional(prefix))
        return Prefix(*(torch.cat(parts) for parts in zip(*both, strict=True)))

    def _set_up(self, mask_RT: torch.Tensor, total: int) -> None:
        config, weight = self.decoder.config, self.decoder.embedding.weight
        rows, self.slots = mask_RT.shape
        shape = (rows, config.num_attention_heads, total, config.head_dim)
        self.caches = [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.decoder.blocks]
        self.probabilities = []
        self.mask_RSS = materialised_mask(mask_RT, total)
        self.turns_S2 = rotations(self.decoder, self.slots)

    def _forward(self, x_RID: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Inputs at ``places`` of the S slots -> logits_RIV in float32."""
        turns_I, mask = self.turns_S2[places], self.mask_RSS[:, None, places]
        for block, cache in zip(self.decoder.blocks, self.caches, strict=True):
            x_RID = block_output(block, x_RID, turns_I, partial(_over_cache, cache, places, mask))
        return logits_of(self.decoder, x_RID)

    def _choose(self, logits_RIV: torch.Tensor) -> torch.Tensor:
        logits = logits_RIV[:, -1]
        if self.scale != 1.0:
            cond, uncond = logits.chunk(2)
            logits = uncond + (cond - uncond) * self.scale
        probabilities_NV = logits.softmax(-1)
        place = len(self.probabilities)
        self.probabilities.append(probabilities_NV.clone())
        if self.uniforms_NL is not None:
            return draw_tokens(probabilities_NV, self.uniforms_NL[:, place, None])
        return probabilities_NV.topk(1, dim=-1).indices


def reference_draw(sampler: ReferenceSampler, prefix: Prefix, count: int) -> torch.Tensor:
    """The first ``count`` tokens of each picture [N, count]."""
    tokens = [sampler.prefill(prefix)]
    for position in range(count - 1):
        tokens.append(sampler.step(tokens[-1], position))
    return torch.cat(tokens, dim=1)


def check_plain(decoder: Decoder) -> None:
    """Refuse what the reference's decoder does not know."""
    config = decoder.config
    if config.factorised_codebook or config.image_positions != "input" or config.prefix_rotation != "identity":
        raise ValueError("the reference's way knows plain token tables and its own positions only")


def captions_of(decoder: Decoder, features_RTC: torch.Tensor) -> torch.Tensor:
    """Prefix features as decoder inputs [R, T, D]."""
    projection = decoder.cap_proj
    first = F.linear(features_RTC.to(projection.fc1.weight.dtype), projection.fc1.weight)
    return F.linear(F.gelu(first, approximate="tanh"), projection.fc2.weight)


def materialised_mask(mask_RT: torch.Tensor, total: int) -> torch.Tensor:
    """[R, S, S] bool: causal and not padding, or oneself."""
    causal = torch.ones(total, total, dtype=torch.bool, device=mask_RT.device).tril().repeat(len(mask_RT), 1, 1)
    causal[:, :, : mask_RT.shape[1]] &= mask_RT[:, None, :]
    return causal | torch.eye(total, dtype=torch.bool, device=mask_RT.device)


def rotations(decoder: Decoder, slots: int) -> torch.Tensor:
    """(cos, sin) of all places, prefix first: [S, h/2, 2]."""
    config = decoder.config
    turns = rotation(cells(config.grid, decoder.embedding.weight.device), config.head_dim, config.rope_theta)
    return torch.view_as_real(torch.cat([turns.new_ones(slots, config.head_dim // 2), turns]))


def block_output(block: nn.Module, x_RID: torch.Tensor, turns_I: torch.Tensor, attend: Attend) -> torch.Tensor:
    """A block as the reference writes it, over our weights."""
    assert isinstance(block, Block)
    rows, inputs, width = x_RID.shape
    q, k, v = F.linear(_norm(block.attention_norm, x_RID), block.qkv.weight).split(width, dim=-1)
    q, k, v = (x.view(rows, inputs, block.heads, -1) for x in (q, k, v))
    mixed = attend(*(x.transpose(1, 2) for x in (_turn(q, turns_I), _turn(k, turns_I), v)))
    x_RID = x_RID + F.linear(mixed.transpose(1, 2).reshape(rows, inputs, width), block.out.weight)
    normed, (w1, w3) = _norm(block.ffn_norm, x_RID), block.gate_up.weight.chunk(2)
    return x_RID + F.linear(F.silu(F.linear(normed, w1)) * F.linear(normed, w3), block.down.weight)


def logits_of(decoder: Decoder, x_RID: torch.Tensor) -> torch.Tensor:
    """Logits at all inputs [R, I, V], float32."""
    return F.linear(_norm(decoder.norm, x_RID), decoder.head.weight).float()


def _over_cache(
    cache: tuple[torch.Tensor, torch.Tensor],
    places: torch.Tensor,
    mask: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> torch.Tensor:
    """Attention of new inputs over the whole cache, filled or not."""
    for kept, new in zip(cache, (k, v), strict=True):
        kept[:, :, places] = new
    keys, values = (kept.repeat_interleave(1, dim=1) for kept in cache)  # heads per key: 1, and still a copy
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


def _norm(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """Their RMS norm, written out in float32 operations."""
    wide = x.float()
    return (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + norm.eps)).to(x.dtype) * norm.weight


def _turn(x_RIHd: torch.Tensor, turns_I: torch.Tensor) -> torch.Tensor:
    """Their rotation, in real arithmetic on interleaved pairs."""
    pairs = x_RIHd.float().unflatten(-1, (-1, 2))
    cos, sin = (part[None, :, None] for part in turns_I.unbind(-1))
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(3).to(x_RIHd.dtype)
