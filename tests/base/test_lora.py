"""Adapters: they start as nothing, leave the base as it is, can be switched off, and merge into a plain policy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import CLIP, mixed_prompts, small_policy
from tiny_stage import also, save_tiny_policy, train_tiny
from transformers import TrainerCallback

import mentor_base.sft
from mentor_base.checkpoint import load_policy
from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted
from mentor_base.lora import WithoutAdapters, adapters, merged_state
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.settings import Lora, TrainedParts
from mentor_base.sft import set_trained_parts

ALL = TrainedParts(vision=True, text_encoder=True, lora=Lora(rank=4, alpha=8))
TOKENS = torch.randint(0, 32, (3, 16), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def logp(model: Any, processor: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(mode="logprobs", **processor(mixed_prompts()), tokens=TOKENS).logp_NL


def test_trained_adapters_leave_the_base_and_merge() -> None:
    model, processor = small_policy(**CLIP)
    start, before = {name: value.clone() for name, value in model.state_dict().items()}, logp(model, processor)
    set_trained_parts(model, ALL)
    assert torch.equal(logp(model, processor), before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(mode="loss", **processor(mixed_prompts()), tokens=TOKENS).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad), "all ranks reduce the same"
        optimizer.step()
    adapted = logp(model.eval(), processor)
    assert (adapted - before).abs().max() > 0.1
    assert torch.equal(logp(WithoutAdapters(model), processor), before)
    assert torch.equal(logp(model, processor), adapted), "switched on again"
    state = model.state_dict()
    base = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    assert base.keys() == start.keys()
    assert all(torch.equal(base[name], value) for name, value in start.items())
    plain = MentorForConditionalGeneration(model.config).eval()
    plain.load_state_dict(merged_state(model, state))
    torch.testing.assert_close(logp(plain, processor), adapted, atol=1e-5, rtol=1e-5)


def test_adapters_sit_where_they_are_called() -> None:
    """Tables that are read as plain matrices would ignore an adapter."""
    names = [set(adapted(TrainedParts(text_encoder=True, lora=Lora()))), set(adapted(TrainedParts(lora=Lora())))]
    assert not {"decoder.head", "decoder.codebook_out", "decoder.embedding"} & names[1]
    assert {"decoder.blocks.1.qkv", "decoder.cap_proj.fc1", "encoder.connector.fc2"} <= names[1] < names[0]
    lora = Lora(targets=("qkv", "fc1"))
    assert set(adapted(TrainedParts(lora=lora))) == {
        "decoder.blocks.0.qkv", "decoder.blocks.1.qkv", "decoder.cap_proj.fc1", "encoder.connector.fc1",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"'head' is no linear layer of decoder that .*; known: codebook_in, "):
        adapted(TrainedParts(connector=False, lora=Lora(targets=("head",))))


def adapted(train: TrainedParts) -> dict[str, Any]:
    model, _ = small_policy()
    set_trained_parts(model, train)
    return adapters(model)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"install the extra: pip install 'mentor-rl\[peft\]'"):
        adapted(TrainedParts(lora=Lora()))


class StopAt(TrainerCallback):
    """As if somebody had asked for it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Interrupted("here")


def test_a_stage_trains_adapters_resumes_and_writes_a_plain_policy(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = TrainedParts(text_encoder=True, lora=Lora(rank=2, targets=("qkv", "q")))
    with monkeypatch.context() as patch:
        patch.setattr(mentor_base.sft, "run_callbacks", also(StopAt(5)))
        with pytest.raises(Interrupted):
            train_tiny(policy, tmp_path / "run", train=train)
    run = train_tiny(policy, tmp_path / "run", train=train)
    whole = train_tiny(policy, tmp_path / "whole", train=train)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (run.final / file).read_bytes() == (whole.final / file).read_bytes()
    start, tuned = (load_policy(path)[0].state_dict() for path in (policy, run.path))
    changed = {name for name in start if not torch.equal(start[name], tuned[name])}
    assert changed == {
        "decoder.blocks.0.qkv.weight", "decoder.blocks.1.qkv.weight",
        "encoder.text.encoder.block.0.layer.0.SelfAttention.q.weight",
    }  # fmt: skip
    counts = run.manifest()["parameters"]
    assert counts["total"] == sum(value.numel() for value in load_policy(policy)[0].parameters())
    assert counts["trained"] == 2 * 2 * (48 + 3 * 48) + 2 * (32 + 32)
    assert json.loads((run.final / "adapter/adapter_config.json").read_text())["r"] == 2


def test_peft_loads_the_adapter_onto_the_base(policy: Path, tmp_path: Path) -> None:
    import peft

    run = train_tiny(policy, tmp_path / "run", train=TrainedParts(lora=Lora(rank=2)))
    base = load_policy(policy)[0]
    merged = peft.PeftModel.from_pretrained(base, str(run.final / "adapter")).merge_and_unload()
    tuned = load_policy(run.path)[0].state_dict()
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, tuned[name], atol=1e-6, rtol=1e-6)
