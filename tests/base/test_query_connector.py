"""The Query-Former connector: InstructBLIP's own numbers, texts that guide, and contexts of many pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from policies import QUERY, mixed_prompts, picture, small_policy
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mentor_base.checkpoint import load_policy, save_policy
from mentor_base.config import MentorConfig
from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError
from mentor_base.interchange.exporting import export_reference
from mentor_base.interchange.importing import import_checkpoint
from mentor_base.interchange.options import ImportOptions
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.processor import MentorProcessor


@torch.no_grad()
def test_equals_instructblip() -> None:
    model, processor = small_policy(**QUERY)
    ours = model.encoder.connector
    text = {"model_type": "t5", "d_model": 24, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
    vision = {"hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    qformer = model.config.qformer_config.to_dict()
    config = InstructBlipConfig(vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=4)
    theirs = InstructBlipForConditionalGeneration(config).eval()
    theirs.query_tokens.copy_(ours.queries)
    theirs.qformer.load_state_dict(ours.qformer.state_dict())
    theirs.language_projection.load_state_dict(ours.project.state_dict())
    features = torch.randn(3, 16, 32)
    theirs.vision_model.forward = lambda **_: BaseModelOutputWithPooling(last_hidden_state=features)
    guides = processor.guide_tokenizer(["a red fox", "boat", "this house"], padding=True, return_tensors="pt")
    expected = theirs.get_image_features(
        torch.zeros(3, 3, 16, 16), guides["input_ids"], guides["attention_mask"], return_dict=True
    )
    found = ours(features, guides["input_ids"], guides["attention_mask"])
    torch.testing.assert_close(found, expected.pooler_output, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_text_guides_its_own_picture_only() -> None:
    model, processor = small_policy(**QUERY)
    prompts = mixed_prompts()  # no, one and two pictures
    inputs = processor(prompts)
    assert [int(row.sum()) for row in inputs["input_ids"] == processor.placeholder_id] == [0, 4, 8]
    before = model(mode="encode", **inputs).features_KTC
    prompts[1] = replace(prompts[1], subject="a much longer name of a boat")
    after = model(mode="encode", **processor(prompts)).features_KTC
    assert ((before - after).abs().amax((1, 2)) > 1e-4).tolist() == [False, True, False]


def test_guides_are_the_subject_or_named_apart() -> None:
    _, processor = small_policy(**QUERY)

    def texts(prompt: Prompt) -> list[str]:
        ids = processor([prompt])["guide_ids"]
        return [text.strip() for text in processor.guide_tokenizer.batch_decode(ids, skip_special_tokens=True)]

    both = Prompt("<image> on <image>", (picture(1), picture(2)), meta={"guides": ["a red fox", "the boat"]})
    assert texts(both) == ["a red fox", "the boat"]
    assert texts(replace(both, meta={}, subject="house")) == ["house", "house"]
    assert texts(replace(both, meta={})) == ["whole image", "whole image"]
    with pytest.raises(UserError, match="guides: expected one text per picture, 2, found 1"):
        processor([replace(both, meta={"guides": ["a red fox"]})])


@pytest.mark.parametrize(("connector", "context", "most"), [("mlp", 1280, 4), ("query", 512, 14)])
def test_contexts_of_the_paper_hold_so_many_pictures(connector: str, context: int, most: int) -> None:
    _, small = small_policy(**QUERY)
    config = MentorConfig.of_size("XL", connector=connector, context_length=context)
    processor = MentorProcessor.of(config, small.tokenizer, small.guide_tokenizer)

    def prompt(pictures: int) -> Prompt:
        words = "a red fox on a white background " * 8
        return Prompt("<image> " * pictures + words, (picture(1),) * pictures, meta={"where": "row 7"})

    assert processor([prompt(most)])["input_ids"].shape[1] <= context
    with pytest.raises(UserError, match=rf"row 7: expected at most {context} prefix slots"):
        processor([prompt(most + 1)])


def test_the_full_size_is_instructblips() -> None:
    """12 layers of width 768 that read CLIP-L/14's patches in every second one; 32 queries."""
    config = MentorConfig.of_size("XL", connector="query")
    with torch.device("meta"):
        connector = MentorForConditionalGeneration(config).encoder.connector
    assert connector.queries.shape == (32, 768)
    assert connector.project.weight.shape == (2048, 768)
    layers = connector.qformer.encoder.layer
    assert [layer.has_cross_attention for layer in layers] == [True, False] * 6
    assert layers[0].crossattention.attention.key.weight.shape == (768, 1024)


def test_slots_of_queries_have_no_place_in_the_picture() -> None:
    with pytest.raises(UserError, match="reference_positions: expected 'prefix' with connector 'query'"):
        small_policy(connector="query")


@torch.no_grad()
def test_a_policy_with_queries_goes_round_in_our_own_format_alone(tmp_path: Path) -> None:
    model, processor = small_policy(**QUERY)
    save_policy(model, processor, tmp_path / "policy")
    (tmp_path / "again").mkdir()
    import_checkpoint(tmp_path / "policy", "hf", tmp_path / "again", ImportOptions())
    again, its_processor = load_policy(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    found, expected = its_processor(mixed_prompts()), processor(mixed_prompts())
    assert found["guide_ids"].tolist() == expected["guide_ids"].tolist()
    assert torch.equal(again(mode="encode", **found).features_KTC, model(mode="encode", **expected).features_KTC)
    with pytest.raises(UserError, match=r"expected .*, the only value that MENTOR.s code knows"):
        export_reference(tmp_path / "again", tmp_path / "x.safetensors", "mentor")
