"""Prompts to tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from policies import CLIP, CORPUS, mixed_prompts, picture, shared_policy, small_policy

from mentor_base.build import text_tokenizer
from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError
from mentor_base.processor import CLIP_MEAN, CLIP_STD, MentorProcessor


def test_rows_are_padded_on_the_left_and_end_with_the_end_token() -> None:
    _, processor = shared_policy()
    out = processor(mixed_prompts())
    ids, mask = out["input_ids"], out["attention_mask"]
    assert (ids[:, -1] == processor.tokenizer.eos_token_id).all()
    assert (mask.diff(dim=1) >= 0).all()
    assert mask[2].all()
    assert (ids[mask == 0] == processor.tokenizer.pad_token_id).all()
    assert (ids == processor.placeholder_id).sum(1).tolist() == [0, 16, 32]
    assert out["pixel_values"].shape == (3, 3, 16, 16)


def test_text_only_batches_have_no_pixels() -> None:
    _, processor = shared_policy()
    assert processor([Prompt("two blue circles")])["pixel_values"] is None


def test_a_prompt_that_does_not_fit_is_named() -> None:
    _, processor = shared_policy()
    long = Prompt(
        "<image> <image> <image> <image>", tuple(picture(i) for i in range(4)), meta={"where": "rows.jsonl:7"}
    )
    with pytest.raises(
        UserError, match=r"rows\.jsonl:7: expected at most 56 prefix slots, found 65 \(4 pictures of 16\)"
    ):
        processor([Prompt("two"), long])
    roomy = MentorProcessor(processor.tokenizer, 65, 16, 16, "tokenizer")
    assert roomy([long])["input_ids"].shape == (1, 65)


def test_pictures_become_squares_of_the_tower() -> None:
    _, processor = shared_policy()
    wide = Image.new("RGBA", (40, 20), (0, 0, 0, 0))  # transparent: white
    pixels = processor.pixels([wide])
    assert pixels.shape == (1, 3, 16, 16)
    assert torch.equal(pixels, torch.ones_like(pixels))
    _, clip = small_policy(**CLIP)
    grey = clip.pixels([Image.new("RGB", (30, 30), (51, 102, 153))])[0, :, 3, 3]
    expected = (np.array([0.2, 0.4, 0.6]) - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(grey.numpy(), expected, atol=1e-5)


def test_any_text_can_be_written_and_known_words_are_short() -> None:
    tokenizer = text_tokenizer(CORPUS * 3)
    for text in ("a Red fox", "żółw 🐢", "two blue circles"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids).strip() == text.lower()
    assert len(tokenizer("two blue circles", add_special_tokens=False)["input_ids"]) == 3


def test_the_text_tokenizer_is_a_function_of_its_corpus() -> None:
    first, second = (text_tokenizer(CORPUS).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_round_trip(tmp_path: Path) -> None:
    _, processor = shared_policy()
    processor.save_pretrained(tmp_path)
    loaded = MentorProcessor.from_pretrained(tmp_path)
    before, after = processor(mixed_prompts()), loaded(mixed_prompts())
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_broken_processors_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a processor \(processor.json\), found none"):
        MentorProcessor.from_pretrained(tmp_path)
    _, processor = shared_policy()
    processor.save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "processor.json").read_text(encoding="utf-8"))
    (tmp_path / "processor.json").write_text(json.dumps({**facts, "picture_slotz": 3}), encoding="utf-8")
    with pytest.raises(UserError, match="unknown key 'picture_slotz'; did you mean 'picture_slots'"):
        MentorProcessor.from_pretrained(tmp_path)
