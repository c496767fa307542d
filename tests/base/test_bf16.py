"""bf16 under autocast with float32 master weights: a stage learns, and goes on after an interruption bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_stage import also, save_tiny_policy, train_tiny
from transformers import TrainerCallback

import mentor_base.sft
from mentor_base.interrupt import Interrupted
from mentor_base.settings import Optimisation, Validation


class Watch(TrainerCallback):
    """Sees what is trained; raises a signal in step 10."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.kinds = {parameter.dtype for parameter in model.parameters()}
        if state.global_step == 10:
            signal.raise_signal(signal.SIGTERM)


def test_a_stage_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = save_tiny_policy(tmp_path / "policy")
    settings: Any = {
        "optimisation": Optimisation(lr=1e-2, steps=20, batch=8, threads=1, precision="bf16"),
        "validation": Validation(every=20, examples=4, grid=0),
    }
    with monkeypatch.context() as patch:
        watch = Watch()
        patch.setattr(mentor_base.sft, "run_callbacks", also(watch))
        with pytest.raises(Interrupted, match="stopped at step 11 of 20"):
            train_tiny(policy, tmp_path / "run", **settings)
    assert watch.kinds == {torch.float32}
    run = train_tiny(policy, tmp_path / "run", **settings)
    whole = train_tiny(policy, tmp_path / "whole", **settings)
    assert (run.final / "model.safetensors").read_bytes() == (whole.final / "model.safetensors").read_bytes()
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    assert len(losses) == 20
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    stored = load_file(run.final / "model.safetensors")
    trained = stored["decoder.blocks.0.qkv.weight"]
    assert trained.dtype == torch.float32
    assert (trained != trained.bfloat16().float()).any(), "steps smaller than bf16 can hold were kept"
