"""Sampler and scoring pass: one distribution, over guidance x precision x adapters x engine (test_generate.py has
padding x guidance x temperature x group x precision).

The prompts have no, one and two pictures, so that lengths and padding differ within each batch; groups share a prefix.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from policies import mixed_prompts, small_policy

from mentor_base.decode_graph import DecodeEngine
from mentor_base.generate import generate
from mentor_base.lora import ADAPTER, adapters, add_adapters
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.processor import MentorProcessor
from mentor_base.settings import Lora, Sampling, TrainedParts

GROUP, SLOTS = 3, 56
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2}
SCALES_K = torch.tensor([1.0, 2.5, 6.0])


@functools.cache
def policy(dtype: torch.dtype, adapted: bool) -> tuple[MentorForConditionalGeneration, MentorProcessor]:
    model, processor = small_policy()
    if adapted:
        add_adapters(model, TrainedParts(text_encoder=True, lora=Lora(rank=2)), seed=0)
        generator = torch.Generator().manual_seed(1)
        for layer in adapters(model).values():  # a new adapter changes nothing
            torch.nn.init.normal_(layer.lora_B[ADAPTER].weight, std=0.2, generator=generator)
    return model.to(dtype).eval(), processor


@functools.cache
def engine(name: str) -> DecodeEngine | None:
    """Kept over the cases, as a run keeps it over its rollouts. Inductor would want a C++ compiler."""
    engines = {
        "static": lambda: DecodeEngine("eager", window=7, slots=SLOTS),
        "compile": lambda: DecodeEngine("compile", window=16, slots=SLOTS, backend="eager"),
    }
    return engines[name]() if name in engines else None


EVERY = list(
    itertools.product([1.0, 3.0, "per prompt"], [torch.float32, torch.bfloat16], [False, True], ["loop", "static"])
)
COMPILED = [("per prompt", torch.float32, True, "compile"), (3.0, torch.bfloat16, False, "compile")]  # seconds each


@torch.no_grad()
@pytest.mark.parametrize(("guidance", "dtype", "adapted", "way"), EVERY + COMPILED)
def test_sampler_and_scoring_pass_agree(guidance: float | str, dtype: torch.dtype, adapted: bool, way: str) -> None:
    model, processor = policy(dtype, adapted)
    scales_N = SCALES_K.repeat_interleave(GROUP) if guidance == "per prompt" else None
    sampling = Sampling(temperature=0.8, guidance_scale=1.0 if isinstance(guidance, str) else guidance)
    inputs = processor(mixed_prompts())
    prefix = model(mode="encode", **inputs)
    for seed in (0, 1):  # an engine's second call works in the first one's tensors
        random = torch.Generator().manual_seed(seed)
        made = generate(model, prefix, GROUP, sampling, random, engine=engine(way), scales_N=scales_N)
        scored = model(
            mode="logprobs", **inputs, tokens=made.tokens_NL, group_size=GROUP, sampling=sampling, scales=scales_N
        )
        tolerance = TOLERANCE[dtype] * (6.0 if isinstance(guidance, str) else guidance)  # guidance scales differences
        torch.testing.assert_close(scored.logp_NL, made.logp_NL, atol=tolerance, rtol=0)
        assert (scored.logp_NL - made.logp_NL).abs().mean() < 0.15 * tolerance
        assert made.logp_NL.std() > 0.3


@torch.no_grad()
def test_an_engine_takes_up_new_scales() -> None:
    model, processor = policy(torch.float32, False)
    prefix = model(mode="encode", **processor(mixed_prompts()))
    static = DecodeEngine("eager", window=7, slots=SLOTS)
    for shift in (0.0, 2.0):
        scales_N = SCALES_K.repeat_interleave(GROUP) + shift
        drawn = [
            generate(model, prefix, GROUP, Sampling(), torch.Generator().manual_seed(3), engine=way, scales_N=scales_N)
            for way in (static, None)
        ]
        assert torch.equal(drawn[0].tokens_NL, drawn[1].tokens_NL)
        torch.testing.assert_close(drawn[0].logp_NL, drawn[1].logp_NL, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_same_scale_for_all_is_the_constant_one() -> None:
    model, processor = policy(torch.float32, False)
    prefix = model(mode="encode", **processor(mixed_prompts()))
    numbers = [torch.Generator().manual_seed(3) for _ in range(2)]
    constant = generate(model, prefix, 1, Sampling(guidance_scale=2.5), numbers[0])
    each = generate(model, prefix, 1, Sampling(), numbers[1], scales_N=torch.full((3,), 2.5))
    assert torch.equal(constant.tokens_NL, each.tokens_NL)
    torch.testing.assert_close(constant.logp_NL, each.logp_NL, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("gap", [1, 5])
def test_the_first_token_does_not_see_the_padding(gap: int) -> None:
    """It has no image token before it: all it knows is the last slot of its prompt, wherever padding puts that."""
    model, processor = policy(torch.float32, False)
    tokens = torch.randint(0, 32, (3, 16), generator=torch.Generator().manual_seed(2))
    found = []
    for slots in (0, gap):
        inputs = processor(mixed_prompts())
        for key, fill in (("input_ids", processor.tokenizer.pad_token_id), ("attention_mask", 0)):
            inputs[key] = torch.nn.functional.pad(inputs[key], (slots, 0), value=fill)
        found.append(model(mode="logprobs", **inputs, tokens=tokens, scales=SCALES_K).logp_NL)
    torch.testing.assert_close(found[0][:, 0], found[1][:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)
