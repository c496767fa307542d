"""GRPO in less memory: gradient checkpointing, and adapters whose reference is the policy without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from grpo_toys import TIMED, run_recipe, toy_policy, toy_recipe


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return toy_policy(tmp_path_factory.mktemp("toy") / "policy")


def test_gradient_checkpointing_takes_the_same_steps(policy: Path, tmp_path: Path) -> None:
    traces = []
    for on in (False, True):
        changes = {"optimisation": {"gradient_checkpointing": on}, "train": {"text_encoder": True}}
        lines = run_recipe(toy_recipe(policy, tmp_path / f"run-{on}", 2, **changes))
        traces.append([{k: v for k, v in line.items() if not k.startswith(TIMED)} for line in lines])
    for plain, checkpointed in zip(*traces, strict=True):
        assert checkpointed == pytest.approx(plain, rel=1e-4, abs=1e-6)
    assert max(line["gap/max"] for line in traces[1][1:]) < 1e-3
