"""A decoder of any size with random weights, as the sampler calls a model: no encoder, no tokenizer.

Rollouts spend their time in the decoder; at size B the encoder around it would be ten times its size.
Shapes: K prompts, T prefix slots.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mentor_base.config import MentorConfig
from mentor_base.decoder import Decoder
from mentor_base.errors import UserError
from mentor_base.prefix import Prefix

PLAIN = {  # what the reference decoder knows, at every size
    "factorised_codebook": False,
    "reference_positions": "prefix",
    "image_positions": "input",
    "uncond": "fixed",
}


class DecoderPolicy(nn.Module):
    """Modes "prefill" and "step" of MentorForConditionalGeneration."""

    def __init__(self, config: MentorConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)

    def forward(self, mode: str, **inputs: Any) -> Any:
        return self._prefill(**inputs) if mode == "prefill" else self.decoder.step(inputs["tokens"], inputs["cache"])

    def _prefill(self, prefix: Prefix, group_size: int, guided: bool, prepare: bool) -> Any:
        if guided:
            prefix = Prefix.join([prefix, self.decoder.unconditional(prefix)])
        return self.decoder.prefill(prefix, group_size, self.decoder.tables(torch.empty(0)), prepare)


def plain_config(size: str, tokens: int, prefix: int) -> MentorConfig:
    """A size of the table with the reference's choices, so many image tokens and prefix slots.

    Raises:
        UserError: tokens that are no square.
    """
    grid = side_of("--tokens", tokens)
    stride = MentorConfig.of_size(size).vq_config.stride
    return MentorConfig.of_size(size, context_length=prefix, **{"vq_config.image_size": grid * stride}, **PLAIN)


def side_of(option: str, cells: int) -> int:
    """Of a square picture of so many cells.

    Raises:
        UserError: a number that is no square.
    """
    side = math.isqrt(cells)
    if side * side != cells:
        raise UserError(f"{option}: expected a square number, since pictures are square; found {cells}")
    return side


def random_policy(config: MentorConfig, device: torch.device, dtype: torch.dtype, seed: int) -> DecoderPolicy:
    """Weights of the same distribution at every size; the head too, so that logits have a clear best."""
    with torch.device("meta"):
        policy = DecoderPolicy(config)
    policy.to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for tensor in policy.state_dict().values():
        if tensor.dim() == 1:
            tensor.fill_(1.0)
        else:
            tensor.normal_(std=tensor.shape[-1] ** -0.5, generator=generator)
    return policy.to(device=device, dtype=dtype).eval()


def random_prefix(
    config: MentorConfig, prompts: int, slots: int, device: torch.device, dtype: torch.dtype, seed: int
) -> Prefix:
    """K prompts, the first of ``slots`` slots, the others shorter, down to half of that; left-padded."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(prompts, slots, config.text_width, generator=generator)
    padding = torch.arange(prompts) * slots // (2 * prompts)
    mask = torch.arange(slots) >= padding[:, None]
    features = features * mask[:, :, None]
    return Prefix(features.to(dtype), mask, torch.zeros(prompts, slots, 2)).to(device)
