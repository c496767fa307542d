"""The decoder against LlamaGen's parity vectors, and its own promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from policies import (
    fixture,
    formula_data,
    formula_tokens,
    formula_weight,
    mixed_prompts,
    reference_config,
    shared_policy,
    small_policy,
)
from torch.nn import functional as F

from mentor_base.decoder import Decoder
from mentor_base.generate import generate
from mentor_base.interchange.importing import import_llamagen
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.prefix import Prefix
from mentor_base.rope import cells, rotate, rotation
from mentor_base.settings import Sampling


def reference_decoder(prefix_rotation: str) -> tuple[MentorForConditionalGeneration, Prefix, torch.Tensor]:
    facts, _ = fixture("decoder_tiny")
    model = MentorForConditionalGeneration(reference_config(prefix_rotation=prefix_rotation)).eval()
    state = {key: formula_weight(key, shape) for key, shape in facts["keys"].items()}
    model.decoder.load_state_dict(import_llamagen(state, model.config))
    features = formula_data("decoder_tiny.prefix", [2, 12, 48])
    mask = torch.zeros(2, 12, dtype=torch.bool)
    for row, length in enumerate(facts["prefix_lengths"]):
        features[row, : 12 - length] = 0
        mask[row, 12 - length :] = True
    tokens = formula_tokens("decoder_tiny.tokens", [2, 16], 64)
    return model, Prefix(features, mask, torch.zeros(2, 12, 2)), tokens


@torch.no_grad()
@pytest.mark.parametrize(("variant", "prefix_rotation"), [("fixed", "identity"), ("llamagen", "zero")])
def test_equals_llamagen(variant: str, prefix_rotation: str) -> None:
    _, expected = fixture("decoder_tiny")
    model, prefix, tokens = reference_decoder(prefix_rotation)
    logits = model(mode="hidden", prefix=prefix, tokens=tokens) @ model.head_weight().T
    np.testing.assert_allclose(logits.numpy(), expected[f"{variant}.logits"], atol=1e-4)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).item()
    assert loss == pytest.approx(float(expected[f"{variant}.loss"]), abs=1e-5)
    for scale in (1, 3):
        greedy = Sampling(guidance_scale=scale, top_k=1)
        made = generate(model, prefix, 1, greedy, torch.Generator().manual_seed(0))
        assert made.tokens_NL.tolist() == expected[f"{variant}.greedy_cfg{scale}"].tolist()


def test_rotation_turns_rows_then_columns_in_interleaved_pairs() -> None:
    turn = rotation(torch.tensor([[2.0, 3.0]]), head_dim=8, base=10000.0)[0]
    # h/2 = 4, so the two frequencies of an axis are 1 and 10000^(-1/2)
    angles = torch.tensor([2.0, 0.02, 3.0, 0.03])
    torch.testing.assert_close(turn.angle(), angles)
    x = torch.zeros(8)
    x[2] = 1.0  # first of pair 1
    expected = torch.zeros(8)
    expected[2], expected[3] = torch.cos(angles[1]), torch.sin(angles[1])
    torch.testing.assert_close(rotate(x, turn), expected)
    assert cells(3)[5].tolist() == [1.0, 2.0]


def test_scores_between_rotated_cells_depend_on_their_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, generator=generator)

    def score(a: tuple[float, float], b: tuple[float, float]) -> float:
        turns = rotation(torch.tensor([a, b]), 16, 100.0)
        return float(rotate(q, turns[0]) @ rotate(k, turns[1]))

    assert score((1, 2), (3, 1)) == pytest.approx(score((4, 5), (6, 4)), abs=1e-5)
    assert score((1, 2), (3, 1)) != pytest.approx(score((1, 2), (1, 3)), abs=1e-2)


def inputs_for(group_size: int) -> tuple[Prefix, torch.Tensor]:
    model, processor = shared_policy()
    with torch.no_grad():
        prefix = model(mode="encode", **processor(mixed_prompts()))
    tokens = torch.randint(0, 32, (3 * group_size, 16), generator=torch.Generator().manual_seed(4))
    return prefix, tokens


def test_a_group_shares_its_prefix_without_changing_a_number() -> None:
    model, _ = shared_policy()
    prefix, tokens = inputs_for(4)
    repeated = prefix.rows(torch.arange(3).repeat_interleave(4))

    def hidden_and_gradient(prefix: Prefix, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = model(mode="hidden", prefix=prefix, tokens=tokens, group_size=group_size)
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5))
        (gradient,) = torch.autograd.grad((hidden * weights).sum(), model.decoder.blocks[0].qkv.weight)
        return hidden, gradient

    shared, one_by_one = hidden_and_gradient(prefix, 4), hidden_and_gradient(repeated, 1)
    torch.testing.assert_close(shared[0], one_by_one[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(shared[1], one_by_one[1], atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_an_image_sees_nothing_later_and_nothing_of_its_siblings() -> None:
    model, _ = shared_policy()
    prefix, tokens = inputs_for(2)
    changed = tokens.clone()
    changed[1, 7:] = (changed[1, 7:] + 1) % 32
    before, after = (model(mode="hidden", prefix=prefix, tokens=t, group_size=2) for t in (tokens, changed))
    moved = (before - after).abs().amax(-1) > 1e-6
    assert moved[1, 8:].any(-1)
    moved[1, 8:] = False
    assert not moved.any()


@torch.no_grad()
def test_folded_codebook_is_the_same_function() -> None:
    model, _ = shared_policy()
    prefix, tokens = inputs_for(1)
    folded = model.fold()
    assert not folded.config.factorised_codebook
    assert not any("codebook_" in name for name in folded.state_dict())
    before = model(mode="hidden", prefix=prefix, tokens=tokens) @ model.head_weight().T
    after = folded(mode="hidden", prefix=prefix, tokens=tokens) @ folded.decoder.head.weight.T
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_unconditional_prefix_is_the_tables_end_under_the_same_mask() -> None:
    model, _ = shared_policy()
    prefix, tokens = inputs_for(1)
    slots = prefix.mask_KT.shape[1]
    nothing = model.decoder.unconditional(prefix)
    assert torch.equal(nothing.features_KTC[0], model.decoder.uncond[-slots:])
    assert torch.equal(nothing.mask_KT, prefix.mask_KT)
    dropped = model.decoder.with_drop(prefix, torch.tensor([False, True, False]))
    assert torch.equal(dropped.features_KTC[1], nothing.features_KTC[1])
    assert torch.equal(dropped.features_KTC[0], prefix.features_KTC[0])
    halves = model(mode="hidden", prefix=prefix, tokens=tokens, guided=True).chunk(2)
    cond = model(mode="hidden", prefix=prefix, tokens=tokens)
    uncond = model(mode="hidden", prefix=prefix, tokens=tokens, unconditional=True)
    torch.testing.assert_close(halves[0], cond)
    torch.testing.assert_close(halves[1], uncond)


def test_fixed_table_is_a_buffer_and_a_learned_one_a_parameter() -> None:
    learned = shared_policy()[0].decoder
    fixed = small_policy(uncond="fixed")[0].decoder
    assert "uncond" in dict(learned.named_parameters())
    assert "uncond" in dict(fixed.named_buffers())
    assert set(learned.state_dict()) == set(fixed.state_dict())


def test_image_positions_option_moves_every_input_to_the_cell_it_predicts() -> None:
    own, target = (Decoder(reference_config(image_positions=name)) for name in ("input", "target"))
    torch.testing.assert_close(target._image_turns(16)[:15], own._image_turns(16)[1:])
    # The last prefix slot predicts token 0 and is unrotated, which is cell (0, 0) in both.
    torch.testing.assert_close(own._image_turns(16)[0], torch.ones(16, dtype=torch.complex64))
