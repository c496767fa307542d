"""GRPO by two processes under the launch files, as accelerate prepares them: what one process makes.

Sampling reads whole weights between passes, and a group is split between the processes. DeepSpeed is an extra, and its
tests run where it is installed.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from grpo_toys import HERE, TIMED, run_recipe, toy_policy, toy_recipe
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "base"))
from engine_launch import launched

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
CHANGES = {"algorithm": {"group_size": 4, "prompts_per_step": 3, "inner_iterations": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/ and alone/, a run by one process."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("grpo")
    toy_policy(folder / "policy")
    run_recipe(toy_recipe(folder / "policy", folder / "alone", 2, **CHANGES))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "engine", ["fsdp2", pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed)]
)
def test_two_processes_tune_what_one_does(engine: str, folder: Path) -> None:
    recipe = folder / f"{engine}.json"
    recipe.write_text(json.dumps(toy_recipe(folder / "policy", folder / engine, 2, **CHANGES)))
    launched(engine, HERE, recipe)
    pair, alone = (
        [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in (engine, "alone")
    )
    assert [line["step"] for line in pair] == [line["step"] for line in alone] == [0, 1, 2]
    for ours, theirs in zip(pair, alone, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if not TIMED.fullmatch(name):
                assert ours[name] == pytest.approx(value, abs=2e-5, rel=1e-3, nan_ok=True), name
    tuned, expected = (load_file(folder / run / "final" / "model.safetensors") for run in (engine, "alone"))
    for name, value in expected.items():
        torch.testing.assert_close(tuned[name], value, atol=2e-5, rtol=0)
