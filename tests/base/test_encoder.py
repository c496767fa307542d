"""The multimodal encoder against MENTOR's parity vectors, and how pictures get into the text."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from policies import (
    CLIP,
    QUERY,
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

from mentor_base.errors import UserError
from mentor_base.interchange.importing import import_mentor
from mentor_base.model import MentorForConditionalGeneration


@torch.no_grad()
def test_equals_mentor() -> None:
    facts, expected = fixture("mentor_tiny")
    t5 = {key: value for key, value in facts["t5"].items() if key != "model_type"}
    config = reference_config(context_length=24, placeholder_id=100, t5_config=t5, clip_config=facts["clip"])
    model = MentorForConditionalGeneration(config).eval()
    tied = "multimodal_encoder.language_model.shared.weight"
    names = {key: tied if key.endswith("embed_tokens.weight") else key for key in facts["keys"]}
    state = {key: formula_weight(names[key], shape) for key, shape in facts["keys"].items()}
    left_out = model.load_state_dict(import_mentor(state, config), strict=False)
    assert all(key.startswith("vq.") for key in left_out.missing_keys)

    ids, mask = (torch.from_numpy(expected[name]) for name in ("input_ids", "attention_mask"))
    lengths = mask.sum(1)
    for row, length in enumerate(lengths.tolist()):  # the reference pads on the right, we on the left
        ids[row], mask[row] = ids[row].roll(24 - length), mask[row].roll(24 - length)
    pixels = formula_data("mentor.pixels", facts["pixels_shape"])[torch.from_numpy(expected["image_mask"]).bool()]
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    prefix = model(mode="encode", **inputs)
    for row, length in enumerate(lengths.tolist()):
        ours = prefix.features_KTC[row, 24 - length :, :256].numpy()
        np.testing.assert_allclose(ours, expected["encoder_hidden"][row, :length], atol=1e-4)
    tokens = formula_tokens("mentor.tokens", facts["tokens_shape"], 64)
    logits = model(mode="hidden", prefix=prefix, tokens=tokens) @ model.head_weight().T
    np.testing.assert_allclose(logits.numpy(), expected["logits"], atol=1e-4)
    assert model(mode="loss", **inputs, tokens=tokens).loss.item() == pytest.approx(float(expected["loss"]), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "hidden", "activation"),
    [({}, 24, F.gelu), ({"connector_activation": "silu", "connector_width": 40}, 40, F.silu)],
    ids=["code", "paper"],
)
def test_both_forms_of_the_mlp_connector(options: dict[str, Any], hidden: int, activation: Any) -> None:
    """The width of the text encoder, 24, with GELU in MENTOR's code; another one with SiLU in its paper."""
    connector = small_policy(**CLIP, **options)[0].encoder.connector
    assert set(connector.state_dict()) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    first, second = connector.fc1, connector.fc2
    assert (first.weight.shape, second.weight.shape) == ((hidden, 32), (24, hidden))
    first.bias.normal_()
    features = torch.randn(2, 16, 32)
    expected = activation(features @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(connector(features), expected)


@torch.no_grad()
def test_each_picture_reaches_its_own_prompt() -> None:
    model, processor = shared_policy()
    prompts = mixed_prompts()
    inputs = processor(prompts)
    assert inputs["pixel_values"].shape[0] == 3
    before = model(mode="encode", **inputs).features_KTC
    inputs["pixel_values"][0] *= -1  # the second prompt's only picture
    after = model(mode="encode", **inputs).features_KTC
    changed = (before - after).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("dropped", [1, 3])
def test_placeholders_without_pictures_are_an_error(dropped: int) -> None:
    model, processor = shared_policy()
    inputs = processor(mixed_prompts())
    inputs["pixel_values"] = inputs["pixel_values"][: 3 - dropped]
    with pytest.raises(UserError, match=rf"expected 3 pictures .*\(0, 1, 2\), found {3 - dropped}"):
        model(mode="encode", **inputs)


def test_a_cut_off_picture_is_an_error_that_names_the_sample() -> None:
    model, processor = shared_policy()
    inputs = processor(mixed_prompts())
    inputs["input_ids"][1][inputs["input_ids"][1] == processor.placeholder_id] = 5
    inputs["input_ids"][1, -3] = processor.placeholder_id
    with pytest.raises(UserError, match="sample 1 of the batch: expected 16 placeholders a picture, found 1"):
        model(mode="encode", **inputs)


@torch.no_grad()
def test_grid_positions_put_patches_where_the_image_has_them() -> None:
    model, processor = shared_policy()
    prefix = model(mode="encode", **processor(mixed_prompts()))
    placed = prefix.positions_KT2[2]
    marks = processor(mixed_prompts())["input_ids"][2] == processor.placeholder_id
    first, second = placed[marks].split(16)
    assert first.tolist() == second.tolist()
    assert first[6].tolist() == [1.0, 2.0]
    assert not placed[~marks].any()
    finer, other = small_policy(**{**CLIP, "clip_config.patch_size": 2, "context_length": 80})
    wide = finer(mode="encode", **other([mixed_prompts()[1]])).positions_KT2[0]
    assert (wide.min(), wide.max()) == (-0.25, 3.25)  # 8 patches a side on 4 cells, two to a cell
    plain, _ = small_policy(reference_positions="prefix")
    assert not plain(mode="encode", **processor(mixed_prompts())).positions_KT2.any()


@pytest.mark.parametrize("options", [{}, CLIP, QUERY])
def test_a_batch_of_text_gives_every_parameter_a_gradient(options: dict[str, object]) -> None:
    model, processor = small_policy(**options)
    model.train()
    inputs = processor([mixed_prompts()[0]])
    assert inputs["pixel_values"] is None
    tokens = torch.zeros(1, 16, dtype=torch.long)
    model(mode="loss", **inputs, tokens=tokens).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


@torch.no_grad()
def test_the_dummy_picture_leaves_no_trace() -> None:
    model, processor = shared_policy()
    noisy = copy.deepcopy(model)
    noisy.encoder.connector.fc2.bias.add_(100.0)
    inputs = processor([mixed_prompts()[0]])
    before, after = (m(mode="encode", **inputs).features_KTC for m in (model, noisy))
    torch.testing.assert_close(before, after)
