"""Two processes under torchrun (gloo) make the first step that one process makes, with a group split between them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from grpo_toys import HERE, TIMED, run_recipe, toy_policy, toy_recipe


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(recipe: dict, script: Path) -> subprocess.CompletedProcess[str]:
    script.write_text(json.dumps(recipe))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command = [*launcher, HERE, script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.slow
def test_two_processes_make_the_first_step_of_one(tmp_path) -> None:
    """Three groups of four over two processes: the second is split. Rewards, advantages, KL, gradients agree."""
    torch.set_num_threads(1)
    policy = toy_policy(tmp_path / "policy")
    over_all = {  # what looks at all samples, or has to be the same for each
        "entropy": {"quantile": 0.5},  # not with a bonus: see objective.uncertain_tokens
        "guidance": {"scale": [1.0, 3.0]},
        "importance": {"cap": 1.5},
        "reference": {"every": 1, "mix": 0.5},
    }
    changes = {
        "algorithm": {"group_size": 4, "prompts_per_step": 3, "inner_iterations": 2, **over_all},
        "rewards": {
            "brightness": {"use": f"{HERE}:Brightness"},
            "redness": {"use": f"{HERE}:Redness", "options": {"every": 5}},
        },
        "failure_rate": 1.0,
    }
    alone = run_recipe(toy_recipe(policy, tmp_path / "alone", 2, **changes))
    calls = tmp_path / "calls"
    counted = {"counted": {"use": f"{HERE}:Counted", "role": "monitor", "options": {"file": str(calls)}}}
    changes["rewards"] |= counted
    done = torchrun(toy_recipe(policy, tmp_path / "pair", 2, **changes), tmp_path / "recipe.json")
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = sorted(map(int, calls.read_text().split()))
    assert sizes == [2, 2, 6, 6], "fixed prompts at the start and the end by one process; of the rollout half by each"
    pair = [json.loads(line) for line in (tmp_path / "pair/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in pair] == [line["step"] for line in alone] == [0, 1, 2]
    for ours, theirs in zip(pair, alone, strict=True):
        assert {name for name in ours if "counted" not in name} == theirs.keys()
        for name, value in theirs.items():
            if not TIMED.fullmatch(name):
                assert ours[name] == pytest.approx(value, abs=2e-5, rel=1e-3), name
    assert alone[1]["rewards/redness/missing"] > 0
    assert alone[2]["kl"] > 0


@pytest.mark.slow
def test_a_process_that_fails_ends_all_with_its_error(tmp_path) -> None:
    policy = toy_policy(tmp_path / "policy")
    rewards = {"breaks": {"use": f"{HERE}:BreaksOnSecond"}}
    done = torchrun(toy_recipe(policy, tmp_path / "run", 2, rewards=rewards), tmp_path / "recipe.json")
    assert done.returncode != 0
    assert "the second process met its end" in done.stderr
    assert not (tmp_path / "run/final").exists()
