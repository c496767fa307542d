"""A run that is killed, interrupted or stopped goes on bit for bit as if nothing had happened (float32, 1 process)."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_toys import HERE, Brightness, comparable, run_recipe, toy_policy, toy_recipe
from mentor_rewards.contract import RewardBatch, RewardOutput, RewardSpec
from safetensors.torch import load_file

from mentor_base.interrupt import Interrupted

STEPS = 6


class Trap(Brightness):
    """Brightness that sends its own process a signal in the middle of a step, once."""

    spec = RewardSpec("trap", "1")

    def score(self, batch: RewardBatch) -> RewardOutput:
        name, step = os.environ.get("TOY_SIGNAL", ":-1").split(":")
        if batch.step == int(step) and len(batch) == 8:
            os.environ["TOY_SIGNAL"] = ":-1"
            os.kill(os.getpid(), getattr(signal, name))
        return super().score(batch)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return toy_policy(tmp_path_factory.mktemp("toy") / "policy")


def recipe(policy: Path, run: Path, **changes: Any) -> dict[str, Any]:
    rewards = {
        "trap": {"use": f"{Path(__file__)}:Trap"},
        "redness": {"use": f"{HERE}:Redness"},
        "watched": {"use": f"{HERE}:Brightness", "role": "monitor"},
    }
    sections = {
        "algorithm": {"micro_batch": 4, **changes.pop("algorithm", {})},
        "monitoring": {"every": 3, "prompts": 2, "window": 3, "significance": 0.2},
        "checkpoints": {"every": 2},
    }
    return toy_recipe(policy, run, STEPS, rewards=rewards, **sections, **changes)


@pytest.fixture(scope="module")
def whole(policy, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_recipe(recipe(policy, run))
    return run


def trace(run: Path) -> list[dict[str, str]]:
    return [comparable(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(run: Path, whole: Path) -> None:
    assert {"hacking/watched", "copies/share", "diversity_pixels"} <= {name for line in trace(whole) for name in line}
    assert trace(run) == trace(whole)
    ours, theirs = (load_file(folder / "final/model.safetensors") for folder in (run, whole))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_resume_after_kill_9_in_mid_step(policy, whole, tmp_path) -> None:
    """Killed in the fourth step, with a state of step 2 and one of step 4 that the kill cut short."""
    run, script = tmp_path / "run", tmp_path / "recipe.json"
    script.write_text(json.dumps(recipe(policy, run)))
    environment = {**os.environ, "TOY_SIGNAL": "SIGKILL:3", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, HERE, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [line["step"] for line in trace(run)] == ["0", "1", "2", "3"]
    assert not (run / "final").exists()
    half = run / "state/checkpoint-4"
    shutil.copytree(run / "state/checkpoint-2", half, ignore=shutil.ignore_patterns("complete.json", "optimizer.pt"))
    run_recipe(recipe(policy, run))
    assert_same(run, whole)


def test_sigterm_saves_a_state_and_says_so(policy, whole, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("TOY_SIGNAL", "SIGTERM:2")
    with pytest.raises(Interrupted, match="stopped at step 3 of 6 with its state saved"):
        run_recipe(recipe(policy, run))
    run_recipe(recipe(policy, run))
    assert_same(run, whole)


def test_interruption_waits_until_a_rollout_is_used_up(policy, tmp_path, monkeypatch) -> None:
    algorithm = {"inner_iterations": 2}
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    run_recipe(recipe(policy, undisturbed, algorithm=algorithm))
    monkeypatch.setenv("TOY_SIGNAL", "SIGINT:2")
    with pytest.raises(Interrupted, match="stopped at step 4 of 6"):
        run_recipe(recipe(policy, run, algorithm=algorithm))
    run_recipe(recipe(policy, run, algorithm=algorithm))
    assert_same(run, undisturbed)


def test_a_finished_run_is_left_alone(policy, whole, tmp_path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    run_recipe(recipe(policy, whole))
    assert (whole / "metrics.jsonl").read_bytes() == before
