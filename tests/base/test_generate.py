"""The sampler: what it draws, and that training sees the distribution it drew from."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from policies import CLIP, mixed_prompts, shared_policy, small_policy
from torch.utils._python_dispatch import TorchDispatchMode

from mentor_base.generate import Decoding, draw, draw_tokens, generate
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.processor import MentorProcessor
from mentor_base.settings import Sampling

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}


@functools.cache
def policy_in(dtype: torch.dtype) -> tuple[MentorForConditionalGeneration, MentorProcessor]:
    model, processor = shared_policy()
    return copy.deepcopy(model).to(dtype), processor


def padded_inputs(processor: MentorProcessor, gap: int) -> dict[str, torch.Tensor]:
    """The mixed prompts with ``gap`` more padding slots on the left, as a longer neighbour would cause."""
    inputs = processor(mixed_prompts())
    for key, fill in (("input_ids", processor.tokenizer.pad_token_id), ("attention_mask", 0)):
        inputs[key] = torch.nn.functional.pad(inputs[key], (gap, 0), value=fill)
    return inputs


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("gap", [0, 5])
def test_sampler_and_teacher_forcing_agree(
    gap: int, guidance: float, temperature: float, group_size: int, dtype: torch.dtype
) -> None:
    model, processor = policy_in(dtype)
    sampling = Sampling(guidance_scale=guidance, temperature=temperature)
    inputs = padded_inputs(processor, gap)
    prefix = model(mode="encode", **inputs)
    made = generate(model, prefix, group_size, sampling, torch.Generator().manual_seed(1))
    scored = model(mode="logprobs", **inputs, tokens=made.tokens_NL, group_size=group_size, sampling=sampling)
    torch.testing.assert_close(scored.logp_NL, made.logp_NL, atol=TOLERANCE[dtype], rtol=0)
    # The agreement means something: the distribution is neither flat nor certain.
    assert 0.5 < scored.entropy_NL.mean() < 3.4
    assert made.logp_NL.std() > 0.3


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampler_and_teacher_forcing_agree_under_autocast(guidance: float) -> None:
    model, processor = shared_policy()
    sampling = Sampling(guidance_scale=guidance)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = processor(mixed_prompts())
        prefix = model(mode="encode", **inputs)
        made = generate(model, prefix, 2, sampling, torch.Generator().manual_seed(1))
        scored = model(mode="logprobs", **inputs, tokens=made.tokens_NL, group_size=2, sampling=sampling)
    torch.testing.assert_close(scored.logp_NL, made.logp_NL, atol=TOLERANCE[torch.bfloat16], rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, CLIP, {"reference_positions": "prefix", "image_positions": "input"}])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_prompts_numbers_do_not_depend_on_its_neighbours(guidance: float, options: dict[str, object]) -> None:
    model, processor = small_policy(**options)
    sampling = Sampling(guidance_scale=guidance)
    tokens = torch.randint(0, 32, (6, 16), generator=torch.Generator().manual_seed(2))
    together = model(mode="logprobs", **processor(mixed_prompts()), tokens=tokens, group_size=2, sampling=sampling)
    for i, prompt in enumerate(mixed_prompts()):
        own = tokens[2 * i : 2 * i + 2]
        alone = model(mode="logprobs", **processor([prompt]), tokens=own, group_size=2, sampling=sampling)
        torch.testing.assert_close(alone.logp_NL, together.logp_NL[2 * i : 2 * i + 2], atol=1e-4, rtol=0)


@torch.no_grad()
def test_conditional_logprob_leaves_guidance_out_but_not_temperature() -> None:
    model, processor = shared_policy()
    inputs = processor(mixed_prompts())
    tokens = torch.randint(0, 32, (3, 16), generator=torch.Generator().manual_seed(2))
    sampling = Sampling(guidance_scale=3.0, temperature=0.7)
    conditional = model(mode="logprobs", **inputs, tokens=tokens, sampling=sampling, logprob="conditional")
    plain = model(mode="logprobs", **inputs, tokens=tokens, sampling=Sampling(temperature=0.7))
    guided = model(mode="logprobs", **inputs, tokens=tokens, sampling=sampling)
    assert torch.equal(conditional.logp_NL, plain.logp_NL)
    assert (guided.logp_NL - plain.logp_NL).abs().max() > 0.5


class NothingForTheHost(TorchDispatchMode):
    """Refuses what a GPU has to be waited for: numbers handed to Python, and shapes that depend on numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero")
        assert func.overloadpacket.__name__ not in waits, func
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize(("guidance", "halves"), [(1.0, 1), (3.0, 2)])
def test_prompts_are_read_once_a_group_and_no_step_waits_for_its_numbers(guidance: float, halves: int) -> None:
    """Three prompts, groups of four: keys of 3 prefixes, steps of 12 rows; each with its unconditional half."""
    model, processor = shared_policy()
    prefix = model(mode="encode", **processor(mixed_prompts()))
    decoding = Decoding(model, prefix, 4, Sampling(guidance_scale=guidance), torch.Generator().manual_seed(0))
    assert {len(part) for keys_and_values in decoding.cache.prefix for part in keys_and_values} == {3 * halves}
    assert len(decoding.hidden) == 12 * halves
    with NothingForTheHost():
        decoding.run()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingForTheHost():
        decoding.tokens_NL.max().item()


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    probabilities = torch.tensor([[0.5, 0.0, 0.2, 0.3, 0.0]])
    uniform = torch.rand(40_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw_tokens(probabilities.expand(40_000, -1), uniform)
    shares = drawn.flatten().bincount(minlength=5) / len(drawn)
    torch.testing.assert_close(shares, probabilities[0], atol=0.01, rtol=0)
    assert shares[1] == shares[4] == 0


def test_same_seed_same_pictures_and_the_mode_is_kept() -> None:
    model, processor = shared_policy()
    prompts = mixed_prompts()
    counted: list[int] = []
    first = draw(model, processor, prompts, group_size=2, batch=4, seed=7, progress=counted.append)
    again = draw(model, processor, prompts, group_size=2, batch=4, sampling=Sampling(seed=7))
    other = draw(model, processor, prompts, group_size=2, batch=4, seed=8)
    assert torch.equal(first.tokens_NL, again.tokens_NL)
    assert not torch.equal(first.tokens_NL, other.tokens_NL)
    assert counted == [4, 2]
    in_one_batch = draw(model, processor, prompts, group_size=2, seed=7)
    assert torch.equal(first.tokens_NL, in_one_batch.tokens_NL)
    assert len(first.images) == 6
    assert first.images[0].size == (16, 16)
    assert not model.training
    assert draw(model, processor, []).images == []
