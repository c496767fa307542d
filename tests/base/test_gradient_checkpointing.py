"""Gradient checkpointing: the same loss and gradients from fewer saved tensors, in every part that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from policies import CLIP, QUERY, mixed_prompts, small_policy
from tiny_stage import save_tiny_policy, train_tiny

from mentor_base.settings import Optimisation, TrainedParts
from mentor_base.sft import set_trained_parts

DROPOUT = {"dropout": 0.1, "t5_config.dropout_rate": 0.1}
DEEP = {"num_hidden_layers": 4, "t5_config.num_layers": 4}


def loss_and_gradients(model: Any, processor: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients by name, and bytes of activations that the forward pass kept for the backward pass."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    tokens = torch.randint(0, 32, (3, 16))
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(mode="loss", **processor(mixed_prompts()), tokens=tokens).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize("options", [{}, CLIP, QUERY], ids=["tokenizer", "clip", "query"])
def test_the_same_numbers_from_fewer_saved_tensors(options: dict[str, Any]) -> None:
    """With dropout, whose masks have to be drawn again."""
    model, processor = small_policy(**DEEP, **DROPOUT, **options)
    set_trained_parts(model, TrainedParts(vision="vision_tower" in options, text_encoder=True))
    model.train()
    loss, gradients, kept = loss_and_gradients(model, processor)
    model.activation_checkpointing_enable()
    again, checkpointed, kept_less = loss_and_gradients(model, processor)
    assert torch.equal(again, loss)
    assert gradients.keys() == checkpointed.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    assert kept_less < 0.6 * kept


def test_a_frozen_encoder_is_not_run_backward() -> None:
    model, processor = small_policy(**CLIP)
    set_trained_parts(model, TrainedParts(connector=False))
    model.train().activation_checkpointing_enable()
    prefix = model(mode="encode", **processor(mixed_prompts()))
    assert not prefix.features_KTC.requires_grad


def test_a_stage_takes_the_same_steps(tmp_path: Path) -> None:
    policy = save_tiny_policy(tmp_path / "policy")
    losses = []
    for on in (False, True):
        optimisation = Optimisation(lr=3e-3, steps=4, batch=4, threads=1, gradient_checkpointing=on)
        run = train_tiny(policy, tmp_path / f"run-{on}", optimisation=optimisation)
        losses.append([line["loss"] for line in run.metrics() if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
