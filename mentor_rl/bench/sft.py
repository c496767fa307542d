"""A supervised step at any size, with random weights: forward, backward, AdamW; and its share of the machine's peak.

One sample is one picture prompt: a reference picture, text, and a drawn picture whose codes are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mentor_base.checkpoint import DTYPES
from mentor_base.config import MentorConfig
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.settings import TrainedParts
from mentor_base.sft import set_trained_parts
from mentor_rl.bench.machine import PeakMemory, Spread, now, product_rate
from mentor_rl.plan.compute import update_flops
from mentor_rl.plan.policy import Pass, facts_of

STAGE_2 = TrainedParts(vision=False, text_encoder=True, connector=True, decoder=True)
PHASES = ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class SftSettings:
    """Attributes: text: tokens of a prompt beside its picture. checkpointing: of gradients."""

    size: str
    batch: int
    dtype: str
    text: int = 32
    steps: int = 3
    device: str = "cpu"
    checkpointing: bool = False
    seed: int = 0


def bench_sft(settings: SftSettings) -> dict[str, Any]:
    """The numbers of a record; one step before the timed ones warms up."""
    device, dtype = torch.device(settings.device), DTYPES[settings.dtype]
    config = MentorConfig.of_size(settings.size)
    peak = PeakMemory(device)
    model = _random_model(config, settings).to(device=device, dtype=dtype)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    inputs = picture_prompts(config, settings, device, dtype)
    times = [_step(model, optimizer, inputs, device) for _ in range(settings.steps + 1)][1:]
    seconds = Spread.of([sum(each) for each in times])
    call = Pass(settings.batch, inputs["input_ids"].shape[1], settings.batch, settings.batch)
    flops = sum(update_flops(facts_of(config, STAGE_2), call, settings.checkpointing, with_encoder=True).values())
    rate = product_rate(device, dtype)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds.as_json(),
        "phases": {name: sum(each[i] for each in times) / len(times) for i, name in enumerate(PHASES)},
        "tokens_per_s": settings.batch * (call.slots + config.image_tokens) / seconds.median,
        "flops": flops,
        "product_rate": rate,
        "mfu": flops / seconds.median / rate,
        "peak_bytes": peak.grown(),
    }


def picture_prompts(
    config: MentorConfig, settings: SftSettings, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Inputs of mode "loss": the placeholders of one picture, then text."""
    generator = torch.Generator().manual_seed(settings.seed)
    count, slots = settings.batch, min(settings.text + config.picture_slots, config.context_length)
    side = config.clip_config.image_size if config.vision_tower == "clip" else config.vq_config.image_size
    words = min(config.placeholder_id, config.t5_config.vocab_size)
    text = torch.randint(2, words, (count, slots), generator=generator)
    text[:, : config.picture_slots] = config.placeholder_id
    tokens = torch.randint(0, config.vocab_size, (count, config.image_tokens), generator=generator)
    pixels = torch.rand(count, 3, side, side, generator=generator)
    return {
        "input_ids": text.to(device),
        "attention_mask": torch.ones_like(text).to(device),
        "pixel_values": pixels.to(device=device, dtype=dtype),
        "tokens": tokens.to(device),
    }


def _random_model(config: MentorConfig, settings: SftSettings) -> MentorForConditionalGeneration:
    torch.manual_seed(settings.seed)
    if config.placeholder_id >= config.t5_config.vocab_size:  # sizes that train from scratch leave it to a tokenizer
        config.placeholder_id = config.t5_config.vocab_size - 1
    model = MentorForConditionalGeneration(config).train()
    set_trained_parts(model, STAGE_2, settings.seed)
    if settings.checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _step(
    model: MentorForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    inputs: dict[str, torch.Tensor],
    device: torch.device,
) -> tuple[float, float, float]:
    """Seconds of PHASES."""
    began = now(device)
    loss = model(mode="loss", **inputs).loss
    forward = now(device)
    loss.backward()
    backward = now(device)
    optimizer.step()
    optimizer.zero_grad()
    return forward - began, backward - forward, now(device) - backward
