"""Two processes under torchrun (gloo) make the first step that one process makes, with a group split between them; and
go on as if nothing had happened where they were stopped.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from grpo_toys import HERE, TIMED, Brightness, comparable, run_recipe, toy_policy, toy_recipe
from mentor_rewards.contract import RewardBatch, RewardOutput, RewardSpec
from safetensors.torch import load_file

RANK = int(os.environ.get("RANK", "0"))


class Wavering(Brightness):
    """Brightness, with noise from the random numbers of its process, less a mean that it remembers. The second process
    is sent the signal TOY_SIGNAL in the midst of the third step.
    """

    spec = RewardSpec("wavering", "1", deterministic=False)

    def __init__(self) -> None:
        self.mean = 0.0

    def score(self, batch: RewardBatch) -> RewardOutput:
        if RANK == 1 and batch.step == 2 and "TOY_SIGNAL" in os.environ:
            os.kill(os.getpid(), getattr(signal, os.environ["TOY_SIGNAL"]))
        for _ in range(RANK):  # the processes' generators part
            random.random(), np.random.rand(), torch.rand(())
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        scores = [(score or 0.0) + noise * i / 10 for i, score in enumerate(super().score(batch).scores)]
        self.mean += 0.3 * (scores[0] - self.mean)
        return RewardOutput([score - self.mean for score in scores])

    def save_state(self) -> dict[str, float]:
        return {"mean": self.mean}

    def load_state(self, state: dict[str, float]) -> None:
        self.mean = state["mean"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(recipe: dict, script: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    script.write_text(json.dumps(recipe))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
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
            "redness": {"use": f"{HERE}:Redness", "options": {"every": 7}},
        },
        "failure_rate": 0.25,  # of the batch, 3 of 12; of the second half 2 of 6
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
    tuned, expected = (load_file(tmp_path / run / "final/model.safetensors") for run in ("pair", "alone"))
    for name, value in expected.items():  # an update is 3e-3
        torch.testing.assert_close(tuned[name], value, atol=1e-4, rtol=0)
    assert alone[1]["rewards/redness/failed"] == 0.25
    assert alone[2]["kl"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_go_on_bit_for_bit(tmp_path) -> None:
    """A signal to one stops both; random numbers and what rewards remember are each process' own."""
    run, script = tmp_path / "run", tmp_path / "recipe.json"
    rewards = {"wavering": {"use": f"{Path(__file__)}:Wavering"}}
    algorithm = {"group_size": 4, "prompts_per_step": 3, "micro_batch": 3, "beta": 0.0}
    policy = toy_policy(tmp_path / "policy")
    recipe = toy_recipe(policy, run, 4, rewards=rewards, algorithm=algorithm, checkpoints={"every": 2})
    done = torchrun(recipe, script)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, weights = lines_of(run), load_file(run / "final/model.safetensors")
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "state/checkpoint-4")
    stopped = torchrun(recipe, script, TOY_SIGNAL="SIGTERM")
    assert stopped.returncode != 0
    assert "stopped at step 3 of 4 with its state saved" in stopped.stderr
    state = run / "state/checkpoint-3"
    remembered = [json.loads((state / f"rewards_{rank}.json").read_text()) for rank in (0, 1)]
    assert remembered[0] != remembered[1]
    assert (state / "complete.json").exists()
    done = torchrun(recipe, script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert lines_of(run) == whole
    again = load_file(run / "final/model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def lines_of(run: Path) -> list[dict[str, str]]:
    return [comparable(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_process_that_fails_ends_all_with_its_error(tmp_path) -> None:
    policy = toy_policy(tmp_path / "policy")
    rewards = {"breaks": {"use": f"{HERE}:BreaksOnSecond"}}
    done = torchrun(toy_recipe(policy, tmp_path / "run", 2, rewards=rewards), tmp_path / "recipe.json")
    assert done.returncode != 0
    assert "the second process met its end" in done.stderr
    assert not (tmp_path / "run/final").exists()
