"""Whole supervised runs by two processes under the launch files, as accelerate prepares them: what one process makes.

Every process has one row a pass, so that now and then one has text alone and the other pictures. DeepSpeed is an
extra, and its tests run where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_launch import launched
from engine_stages import TRAINED, make_world, run_stage
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("engine_stages.py")
WEIGHTS = "final/model.safetensors"
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    for kind in TRAINED:
        run_stage(world, out, kind)
    return out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "engine",
    ["ddp", "fsdp2", pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed)],
)
def test_two_processes_train_what_one_does(engine: str, world: Path, alone: Path, tmp_path: Path) -> None:
    """A stage, the same with adapters, and the projector stage."""
    launched(engine, SCRIPT, world, tmp_path, *TRAINED)
    before = load_file(world / "policy" / "model.safetensors")
    for kind in TRAINED:
        for ours, theirs in zip(metrics(tmp_path / kind), metrics(alone / kind), strict=True):
            assert ours.keys() == theirs.keys()
            for name in theirs.keys() & {"loss", "val/mean", "grad_norm", "lr"}:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5), (kind, name)
        found, expected = (load_file(out / kind / WEIGHTS) for out in (tmp_path, alone))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
        assert max((expected[name] - before[name]).abs().max().item() for name in expected) > 1e-2


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
