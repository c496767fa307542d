"""GRPO by two processes under the launch files, as accelerate prepares them: what one process makes, and what becomes
of a NaN of one of them and of the best policy.

Sampling reads whole weights between passes, and a group is split between the processes, whose update passes meet new
prompts in different places ("weights"). DeepSpeed is an extra, and its tests run where it is installed.
"""

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from grpo_mishap import KEPT, SPOILT, STEPS, WORTH
from grpo_toys import HERE, TIMED, comparable, run_recipe, toy_policy, toy_recipe
from safetensors.torch import load_file

from mentor_base.checkpoint import load_policy
from mentor_rl.monitors.best import best_of

sys.path.append(str(Path(__file__).parents[1] / "base"))
from engine_launch import launched

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
MISHAP = HERE.with_name("grpo_mishap.py")
WAYS = {
    "weights": {"algorithm": {"group_size": 4, "prompts_per_step": 3, "inner_iterations": 2, "micro_batch": 2}},
    "adapters": {
        "algorithm": {"group_size": 4, "prompts_per_step": 3, "guidance": {"scale": 2.0}},
        "train": {"text_encoder": True, "lora": {"rank": 4, "alpha": 16}},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/, and a run by one process in each of the WAYS."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("grpo")
    toy_policy(folder / "policy")
    for way, changes in WAYS.items():
        run_recipe(toy_recipe(folder / "policy", folder / way, 2, **changes))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("engine", "way"),
    [
        ("fsdp2", "weights"),
        pytest.param("zero2", "weights", marks=needs_deepspeed),
        pytest.param("zero3", "weights", marks=needs_deepspeed),
        ("ddp", "adapters"),
        pytest.param("zero3", "adapters", marks=needs_deepspeed),
    ],
)
def test_two_processes_tune_what_one_does(engine: str, way: str, folder: Path) -> None:
    run = folder / f"{engine}_{way}"
    recipe = folder / f"{engine}_{way}.json"
    recipe.write_text(json.dumps(toy_recipe(folder / "policy", run, 2, **WAYS[way])))
    launched(engine, HERE, recipe)
    pair, alone = (
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()] for each in (run, folder / way)
    )
    assert [line["step"] for line in pair] == [line["step"] for line in alone] == [0, 1, 2]
    for ours, theirs in zip(pair, alone, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if not TIMED.fullmatch(name):
                assert ours[name] == pytest.approx(value, abs=2e-5, rel=1e-3, nan_ok=True), name
    assert max(line["gap/max"] for line in pair if "gap/max" in line) < 1e-4
    tuned, expected = (load_file(each / "final" / "model.safetensors") for each in (run, folder / way))
    for name, value in expected.items():
        torch.testing.assert_close(tuned[name], value, atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_deepspeed
def test_what_rewards_remember_is_taken_up_under_deepspeed(folder: Path, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", tmp_path / "recipe.json"
    rewards = {"wavering": {"use": f"{HERE.with_name('test_grpo_processes.py')}:Wavering"}}
    recipe.write_text(json.dumps(toy_recipe(folder / "policy", run, 4, rewards=rewards, checkpoints={"every": 2})))
    launched("zero2", HERE, recipe)
    whole = (run / "metrics.jsonl").read_text().splitlines()
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "state/checkpoint-4")
    launched("zero2", HERE, recipe)
    again = (run / "metrics.jsonl").read_text().splitlines()
    assert [comparable(json.loads(line)) for line in again] == [comparable(json.loads(line)) for line in whole]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_skip_one_update_and_keep_one_best_policy(engine: str, folder: Path, tmp_path: Path) -> None:
    """A NaN in the loss of one process costs both the same update; both hand over the policies that are kept."""
    run, notes, recipe = tmp_path / "run", tmp_path / "notes", tmp_path / "recipe.json"
    monitoring = {"every": 1, "prompts": 2, "best": {"metric": "eval/brightness"}}
    recipe.write_text(json.dumps(toy_recipe(folder / "policy", run, STEPS, monitoring=monitoring)))
    notes.mkdir()
    launched(engine, MISHAP, recipe, notes)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped_updates", 0) for line in lines] == [int(step == SPOILT) for step in range(STEPS + 1)]
    after = [[load_file(notes / f"{rank}_{step}.safetensors") for step in range(STEPS + 1)] for rank in (0, 1)]
    for step in range(STEPS + 1):
        assert equal(after[0][step], after[1][step])
        assert all(value.isfinite().all() for value in after[0][step].values())
        assert step == 0 or equal(after[0][step], after[0][step - 1]) == (step == SPOILT)
    assert [json.loads((notes / f"{rank}_kept.json").read_text()) for rank in (0, 1)] == [[*KEPT, STEPS + 1]] * 2
    facts = {"step": KEPT[-1], "metric": "eval/brightness", "mode": "max", "value": WORTH[KEPT[-1]], "of": KEPT[-1] + 1}
    assert best_of(run) == facts
    for policy, step in ((run / "best", KEPT[-1]), (run / "final", STEPS)):
        held = load_policy(policy)[0].state_dict()
        assert equal(held, {name: after[0][step][name] for name in held})
    assert [path.name for path in run.glob(".best*")] == []


def equal(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in some.items())
