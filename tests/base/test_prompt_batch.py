"""Batches cut along the lengths of their prompts: nothing changes but the padding."""

from __future__ import annotations

import pytest
import torch
from policies import mixed_prompts, shared_policy

from mentor_base.errors import UserError
from mentor_base.prompt_batch import PromptBatch, length_buckets


@pytest.mark.parametrize(
    ("lengths", "buckets"),
    [
        ([70, 8, 70, 9, 8], [[1, 3, 4], [0, 2]]),
        ([70, 66, 70], [[0, 1, 2]]),
        ([5, 5, 5], [[0, 1, 2]]),
        ([7], [[0]]),
    ],
)
def test_cuts_only_where_it_saves(lengths: list[int], buckets: list[list[int]]) -> None:
    assert [part.tolist() for part in length_buckets(lengths)] == buckets


def test_rows_take_their_own_pictures_and_no_padding() -> None:
    _, processor = shared_policy()
    inputs = processor(mixed_prompts())  # no, one and two pictures
    batch = PromptBatch(inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"])
    lengths = inputs["attention_mask"].sum(1)
    outer = batch.rows(torch.tensor([0, 2]), processor.placeholder_id, 16)
    assert torch.equal(outer.pixel_values, inputs["pixel_values"][1:])
    middle = batch.rows(torch.tensor([1]), processor.placeholder_id, 16)
    assert middle.input_ids.shape[1] == lengths[1]
    assert torch.equal(middle.pixel_values, inputs["pixel_values"][:1])
    assert batch.rows(torch.tensor([0]), processor.placeholder_id, 16).pixel_values is None


@torch.no_grad()
def test_a_mixed_batch_has_the_losses_of_its_rows_alone() -> None:
    model, processor = shared_policy()
    prompts = [mixed_prompts()[i] for i in (2, 0, 0, 1, 0)]
    tokens = torch.randint(32, (5, 16), generator=torch.Generator().manual_seed(1))
    assert len(length_buckets(processor(prompts)["attention_mask"].sum(1).tolist())) == 2
    together = model(mode="loss", **processor(prompts), tokens=tokens).loss_N
    alone = [model(mode="loss", **processor([p]), tokens=t[None]).loss_N for p, t in zip(prompts, tokens, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=1e-5)


def test_a_missing_picture_is_still_an_error() -> None:
    model, processor = shared_policy()
    inputs = processor([mixed_prompts()[i] for i in (0, 0, 0, 1)])
    inputs["pixel_values"] = inputs["pixel_values"][:0]
    with pytest.raises(UserError, match="found 0"):
        model(mode="loss", **inputs, tokens=torch.zeros(4, 16, dtype=torch.long))
