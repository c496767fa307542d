"""MentorForConditionalGeneration as trainers see it."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from policies import CORPUS, mixed_prompts, picture, shared_policy, small_policy

from mentor_base.build import build_policy
from mentor_base.checkpoint import load_vq
from mentor_base.config import SIZES, MentorConfig
from mentor_base.data.emoji import EmojiWorld
from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError
from mentor_base.images import to_pixels
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.settings import PolicyModel

# Layers, heads, width, SwiGLU width, millions of parameters: gpt.py of LlamaGen, and counts of its t2i models.
PUBLISHED = {
    "B": (12, 12, 768, 2048, 112),
    "L": (24, 16, 1024, 2816, 345),
    "XL": (36, 20, 1280, 3584, 778),
    "XXL": (48, 24, 1536, 4096, 1410),
    "XXXL": (48, 40, 2560, 6912, 3900),
    "1B": (22, 32, 2048, 5632, 1210),
    "3B": (24, 32, 3200, 8704, 3110),
    "7B": (32, 32, 4096, 11008, 6640),
}


def test_loss_is_the_mean_negative_log_likelihood() -> None:
    model, processor = shared_policy()
    inputs = processor(mixed_prompts())
    tokens = torch.randint(0, 32, (3, 16), generator=torch.Generator().manual_seed(3))
    out = model(mode="loss", **inputs, tokens=tokens)
    scored = model(mode="logprobs", **inputs, tokens=tokens)
    torch.testing.assert_close(out.loss_N, -scored.logp_NL.mean(1))
    torch.testing.assert_close(out.loss, out.loss_N.mean())


@torch.no_grad()
def test_target_pictures_are_tokenised() -> None:
    model, processor = shared_policy()
    inputs = processor(mixed_prompts())
    pixels = to_pixels([picture(i) for i in range(3)])
    a = model(mode="loss", **inputs, target_pixels=pixels)
    b = model(mode="loss", **inputs, tokens=model.vq.encode(pixels))
    assert torch.equal(a.loss_N, b.loss_N)
    with pytest.raises(ValueError, match="either"):
        model(mode="loss", **inputs)


def test_dropped_conditions_say_nothing() -> None:
    model, processor = shared_policy()
    tokens = torch.zeros(2, 16, dtype=torch.long)

    def losses(seed: int, drop: list[bool]) -> torch.Tensor:
        prompts = [Prompt("<image> cut out the boat", (picture(seed + i),)) for i in range(2)]
        return model(mode="loss", **processor(prompts), tokens=tokens, condition_drop=torch.tensor(drop)).loss_N

    moved = (losses(0, [False, True]) - losses(10, [False, True])).abs() > 1e-4
    assert moved.tolist() == [True, False]
    torch.testing.assert_close(losses(0, [False, True])[0], losses(0, [False, False])[0])


def test_the_tokenizer_stays_frozen_and_in_eval_mode() -> None:
    model = copy.deepcopy(shared_policy()[0]).train()
    assert model.training
    assert not model.vq.training
    assert not any(p.requires_grad for p in model.vq.parameters())


def test_unknown_modes_and_wrong_groups_are_named() -> None:
    model, processor = shared_policy()
    with pytest.raises(ValueError, match="did you mean 'logprobs'"):
        model(mode="logprob")
    inputs, tokens = processor(mixed_prompts()), torch.zeros(3, 16, dtype=torch.long)
    with pytest.raises(ValueError, match="3 prompts in groups of 2"):
        model(mode="logprobs", **inputs, tokens=tokens, group_size=2)


def test_what_trl_and_transformers_ask_of_a_model() -> None:
    model, _ = shared_policy()
    assert model.config.get_text_config() is model.config
    assert model.get_input_embeddings() is model.get_output_embeddings() is None, "engines would wrap what is only read"
    assert model._no_split_modules == {"Block", "T5Block"}, "FSDP2 refuses names of classes that are not there"
    assert model.generation_config is not None
    assert model.main_input_name == "input_ids"
    assert model.supports_gradient_checkpointing
    assert model.warnings_issued is not None
    assert not model.accepts_loss_kwargs


@pytest.mark.parametrize("size", PUBLISHED)
def test_decoders_have_the_published_sizes(size: str) -> None:
    layers, heads, width, inner, millions = PUBLISHED[size]
    config = MentorConfig.of_size(size, context_length=120)
    assert (config.num_hidden_layers, config.num_attention_heads) == (layers, heads)
    assert (config.hidden_size, config.intermediate_size) == (width, inner)
    with torch.device("meta"):
        decoder = MentorForConditionalGeneration(config).decoder
    count = sum(p.numel() for p in decoder.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.01)
    assert (config.image_tokens, config.picture_slots) == (1024, 256)


def test_pictures_of_256_and_512_pixels() -> None:
    grids = [MentorConfig.of_size("B", **{"vq_config.image_size": side}).grid for side in (256, 512)]
    assert grids == [16, 32]


def test_deviations_are_off_at_full_size() -> None:
    config = MentorConfig.of_size("XL")
    assert (config.vision_tower, config.reference_positions, config.image_positions) == ("clip", "prefix", "input")
    assert (config.uncond, config.factorised_codebook, config.rope_theta) == ("fixed", False, 10000.0)


def test_tiny_has_at_most_four_million_parameters() -> None:
    model = MentorForConditionalGeneration(MentorConfig.of_size("tiny"))
    count = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("vq."))
    assert 2e6 < count <= 4e6
    assert (model.config.image_tokens, model.config.picture_slots) == (64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_sise": 3}, "unknown field 'hidden_sise'; did you mean 'hidden_size'"),
        ({"t5_config.d_modell": 3}, "unknown field 't5_config.d_modell'; did you mean 'd_model'"),
        ({"vision_tower": "dino"}, "vision_tower: expected one of clip, tokenizer, found 'dino'"),
        ({"hidden_size": 36}, "hidden_size: expected a multiple of"),
        ({"vocab_size": 5}, "vocab_size: expected no value, the tokenizers or another key decide it"),
        ({"size": "XL"}, "size: expected no value"),
        ({"eos_token_id": 5}, "eos_token_id: expected no value"),
        ({"hidden_size": "wide"}, "^policy.options.hidden_size: expected int, found 'wide'$"),
        ({"t5_config.num_layers": "two"}, "^policy.options: .*'num_layers' expected int, got str"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_policy(PolicyModel(options=options), shared_policy()[0].vq, CORPUS)


def test_sizes_that_need_pretrained_weights_are_not_built_at_random() -> None:
    assert set(SIZES) == {"tiny", *PUBLISHED}
    with pytest.raises(UserError, match="expected one of tiny to train from scratch, found 'XL'"):
        build_policy(PolicyModel(size="XL"), shared_policy()[0].vq, CORPUS)
    with pytest.raises(UserError, match="unknown size 'XXML'"):
        MentorConfig.of_size("XXML")


@pytest.mark.slow
def test_a_tiny_policy_overfits_sixteen_reconstructions() -> None:
    tokenizer = Path(__file__).parents[2] / "recipes" / "emoji" / "checkpoints" / "tokenizer"
    world = EmojiWorld()
    torch.manual_seed(0)
    model, processor = build_policy(PolicyModel(), load_vq(tokenizer), world.corpus())
    examples = [world.example("reconstruction", "train", 0, i) for i in range(16)]
    inputs = processor(examples)
    tokens = model.vq.encode(to_pixels([example.target for example in examples], 64))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, betas=(0.9, 0.95))
    for step in range(60):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 30)
        loss = model.train()(mode="loss", **inputs, tokens=tokens).loss
        if step == 0:
            assert loss.item() == pytest.approx(math.log(1024), abs=1.0)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    assert loss.item() < 1.0


def test_building_is_a_function_of_the_seed() -> None:
    first, second = small_policy()[0].state_dict(), small_policy()[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
