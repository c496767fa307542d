"""Two gloo processes under each engine: the loss and the gradients of one, with text alone on one of them.

DeepSpeed is an extra, and its tests run where it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_process import Gradients, alone, draw, policy_and_batch
from safetensors.torch import load_file

from mentor_base.prompt_batch import length_buckets

SCRIPT = Path(__file__).with_name("engine_process.py")
NO_DEEPSPEED = importlib.util.find_spec("deepspeed") is None


def run_engines(out: Path, *engines: str) -> Path:
    done = subprocess.run(
        [sys.executable, SCRIPT, out, *engines],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def torch_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both engines of torch, in one pair of processes."""
    return run_engines(tmp_path_factory.mktemp("torch"), "ddp", "fsdp2")


@pytest.fixture(scope="module")
def one_process() -> tuple[torch.Tensor, Gradients]:
    lengths = [policy_and_batch(rows)[1]["attention_mask"].sum(1).tolist() for rows in ((0, 1), (2, 3))]
    assert [len(length_buckets(found)) for found in lengths] == [1, 2], (
        "a sharded process cannot wait for a second pass"
    )
    return alone((0, 1, 2, 3))


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_are_one(engine: str, torch_engines: Path, one_process: tuple[torch.Tensor, Gradients]) -> None:
    check(load_file(torch_engines / f"{engine}.safetensors"), *one_process)


@pytest.mark.skipif(NO_DEEPSPEED, reason="needs the extra deepspeed")
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_two_processes_of_deepspeed_are_one(
    engine: str, tmp_path: Path, one_process: tuple[torch.Tensor, Gradients]
) -> None:
    check(load_file(run_engines(tmp_path, engine) / f"{engine}.safetensors"), *one_process)


def check(found: Gradients, loss: torch.Tensor, gradients: Gradients) -> None:
    torch.testing.assert_close(found["loss"], loss)
    assert {name.removeprefix("grad/") for name in found if name.startswith("grad/")} == gradients.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        assert (found[f"grad/{name}"] - gradient).abs().max().item() <= 1e-5 * scale + 1e-7, name
    model, _ = policy_and_batch((0,))
    assert torch.equal(found["drawn"], draw(model))
    assert all(torch.equal(found[f"state/{name}"], value) for name, value in model.state_dict().items())


def test_text_alone_moves_every_parameter_by_a_number() -> None:
    """What all engines rely on: no parameter of any part is left without a gradient."""
    _, gradients = alone((0, 1))
    _, with_pictures = alone((2, 3))
    assert gradients.keys() == with_pictures.keys()
    assert all(
        not value.any() for name, value in gradients.items() if name.startswith(("encoder.vision", "encoder.conn"))
    )
