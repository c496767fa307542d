"""Bytes that a rollout cannot help moving, whatever the code: the limit of decoding small batches.

Each step reads all weights of the blocks and the head once, the prefix keys and values once per prompt (and half of
guidance), and each picture's own keys and values. Embedding rows, activations and what is written are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from mentor_base.config import MentorConfig


@dataclass(frozen=True)
class RolloutShape:
    """Attributes: halves: 2 where guidance runs. weight_bytes, cache_bytes: of a number."""

    prompts: int
    group: int
    slots: int
    tokens: int
    halves: int
    weight_bytes: int
    cache_bytes: int


def decoder_weights(config: MentorConfig) -> int:
    """Numbers in the blocks' matrices and the head."""
    width, inner = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (4 * width**2 + 3 * width * inner) + config.vocab_size * width


def step_bytes(config: MentorConfig, shape: RolloutShape, seen: int) -> int:
    """Bytes of one step that sees ``seen`` image inputs of each picture, its own included."""
    slots = shape.halves * shape.prompts * (shape.slots + shape.group * seen)
    cache = 2 * config.num_hidden_layers * config.hidden_size * slots
    return decoder_weights(config) * shape.weight_bytes + cache * shape.cache_bytes


def rollout_bytes(config: MentorConfig, shape: RolloutShape) -> int:
    """Bytes of a whole rollout: one read of the weights for the prefill, and L - 1 steps."""
    prefill = decoder_weights(config) * shape.weight_bytes
    return prefill + sum(step_bytes(config, shape, seen) for seen in range(1, shape.tokens))
