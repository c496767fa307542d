"""A run that is killed, interrupted, stopped or damaged goes on bit for bit as if nothing had happened (float32, 1
process).
"""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grpo_toys import HERE, Brightness, comparable, run_recipe, toy_policy, toy_recipe
from mentor_rewards.contract import RewardBatch, RewardFailure, RewardOutput, RewardSpec
from safetensors.torch import load_file
from transformers import Trainer

from mentor_base.callbacks import Diverged
from mentor_base.interrupt import Interrupted
from mentor_rl import trainer as trainer_module
from mentor_rl.failures import failure_line
from mentor_rl.trainer import MentorGRPOTrainer

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


def started(recipe: dict[str, Any], trap: str = ":-1") -> BaseProcess:
    """A recipe in a process of its own; ``trap``: a signal that it gets in the midst of a step."""

    def run() -> None:
        os.environ["TOY_SIGNAL"] = trap
        run_recipe(recipe)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def killed(recipe: dict[str, Any], trap: str) -> None:
    process = started(recipe, trap)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_resume_after_kill_9_in_mid_step(policy, whole, tmp_path) -> None:
    """Killed in the fourth step, with a state of step 2 and one of step 4 that the kill cut short."""
    run = tmp_path / "run"
    killed(recipe(policy, run), "SIGKILL:3")
    assert [line["step"] for line in trace(run)] == ["0", "1", "2", "3"]
    assert not (run / "final").exists()
    shutil.copytree(run / "state/checkpoint-2", run / "state/.partial/checkpoint-4")
    run_recipe(recipe(policy, run))
    assert_same(run, whole)


def test_kill_9_at_random_moments(policy, whole, tmp_path) -> None:
    """Kills from outside, a random while after a session's first line: in a step, between two, in a state."""
    run, rng = tmp_path / "run", random.Random(5)
    for _ in range(4):
        process, seen = started(recipe(policy, run)), run_lines(run)
        while run_lines(run) == seen and process.is_alive():
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.4))
        process.kill()
        process.join()
    run_recipe(recipe(policy, run))
    assert_same(run, whole)


def run_lines(run: Path) -> bytes:
    """All that a run has logged."""
    file = run / "metrics.jsonl"
    return file.read_bytes() if file.exists() else b""


def test_a_bit_flip_in_the_newest_state_costs_the_steps_since_the_one_before(policy, whole, tmp_path, caplog) -> None:
    run = tmp_path / "run"
    killed(recipe(policy, run), "SIGKILL:5")
    weights = run / "state/checkpoint-4/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4
    weights.write_bytes(bytes(data))
    run_recipe(recipe(policy, run))
    assert "checkpoint-4: a damaged state (model.safetensors: expected SHA-256" in caplog.text
    assert "goes on from step 2" in caplog.text
    assert_same(run, whole)
    assert (run / "state/checkpoint-4.damaged/optimizer.pt").exists()


def test_a_disk_that_fills_while_a_state_is_written_costs_that_state_only(policy, whole, tmp_path, monkeypatch) -> None:
    """The optimizer's file of step 4 goes to /dev/full, whose every write fails as on a full disk."""
    run = tmp_path / "run"
    save = Trainer._save_optimizer_and_scheduler

    def fills(self, output_dir: str) -> None:
        if self.state.global_step == 4:
            (Path(output_dir) / "optimizer.pt").symlink_to("/dev/full")
        save(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", fills)
        with pytest.raises((OSError, RuntimeError)) as full:
            run_recipe(recipe(policy, run))
    assert "no space left on the disk; free some, then run the same command to go on" in str(failure_line(full.value))
    assert [path.name for path in (run / "state").iterdir()] == ["checkpoint-2"]
    run_recipe(recipe(policy, run))
    assert_same(run, whole)


def test_a_loss_that_is_no_number_costs_its_update_only(policy, tmp_path, monkeypatch) -> None:
    """A NaN in the third update, loss and gradient: that one is skipped, also in the run that is resumed after it."""
    loss_of = MentorGRPOTrainer.compute_loss
    calls: list[int] = []

    def spoilt(self, *args, **kwargs):
        calls.append(self.state.global_step)
        loss = loss_of(self, *args, **kwargs)
        return loss * math.nan if calls[-2:] == [1, 2] else loss

    monkeypatch.setattr(MentorGRPOTrainer, "compute_loss", spoilt)
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    lines = [line for line in run_recipe(recipe(policy, undisturbed)) if "loss" in line]
    assert [line.get("skipped_updates", 0) for line in lines] == [0, 0, 1, 0, 0, 0]
    assert [math.isfinite(line["loss"]) for line in lines] == [True, True, False, True, True, True]
    assert calls == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    monkeypatch.setenv("TOY_SIGNAL", "SIGTERM:3")
    with pytest.raises(Interrupted):
        run_recipe(recipe(policy, run))
    run_recipe(recipe(policy, run))
    assert_same(run, undisturbed)


def test_gradients_that_stay_no_numbers_end_the_run_with_its_last_good_weights(policy, tmp_path, monkeypatch) -> None:
    step_of = MentorGRPOTrainer.training_step

    def spoilt(self, model, *args):
        loss = step_of(self, model, *args)
        if self.state.global_step >= 3:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(MentorGRPOTrainer, "training_step", spoilt)
    with pytest.raises(Diverged, match="step 6: the gradients of 3 updates in a row"):
        run_recipe(recipe(policy, tmp_path / "run"))
    state = load_file(tmp_path / "run/state/checkpoint-5/model.safetensors")
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


class Running(Brightness):
    """Brightness less its running mean, which it remembers; a judge that is gone from a step on, until it is back."""

    spec = RewardSpec("running", "1")

    def __init__(self) -> None:
        self.mean = 0.0

    def score(self, batch: RewardBatch) -> RewardOutput:
        scores = [score or 0.0 for score in super().score(batch).scores]
        self.mean += 0.3 * (sum(scores) / len(scores) - self.mean)
        if len(batch) == 8 and batch.step >= int(os.environ.get("TOY_GONE", "99")):
            return RewardOutput([None] * len(batch), ["no answer: connection refused"] * len(batch))
        return RewardOutput([math.nan if i == 1 else score - self.mean for i, score in enumerate(scores)])

    def save_state(self) -> dict[str, float]:
        return {"mean": self.mean}

    def load_state(self, state: dict[str, float]) -> None:
        self.mean = state["mean"]


def test_a_judge_that_dies_costs_its_step_and_what_rewards_remember_is_kept(policy, tmp_path, monkeypatch) -> None:
    """One score in eight is NaN: masked and counted. Watching leaves the running mean alone, resuming restores it."""
    rewards = {"running": {"use": f"{Path(__file__)}:Running"}, "redness": {"use": f"{HERE}:Redness"}}
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    changes = {"checkpoints": {"every": 100}, "monitoring": {"every": 1, "prompts": 2}}
    lines = run_recipe(toy_recipe(policy, undisturbed, STEPS, rewards=rewards, **changes))
    assert {line["rewards/running/failed"] for line in lines if "loss" in line} == {1 / 8}
    assert all(math.isfinite(line["loss"]) and "skipped_updates" not in line for line in lines if "loss" in line)
    monkeypatch.setenv("TOY_GONE", "3")
    with pytest.raises(RewardFailure, match=r"'running': 8 of 8 pictures could not be scored.*connection refused"):
        run_recipe(toy_recipe(policy, run, STEPS, rewards=rewards, **changes))
    assert "running" in json.loads((run / "state/checkpoint-3/rewards_0.json").read_text())
    monkeypatch.setenv("TOY_GONE", "99")
    run_recipe(toy_recipe(policy, run, STEPS, rewards=rewards, **changes))
    assert trace(run) == trace(undisturbed)
    rarely = tmp_path / "rarely"
    lines = run_recipe(toy_recipe(policy, rarely, STEPS, rewards=rewards, **(changes | {"monitoring": {"prompts": 2}})))
    assert [repr(line["loss"]) for line in lines if "loss" in line] == [x["loss"] for x in trace(run) if "loss" in x]


def test_what_rewards_remember_is_taken_up_by_every_engine(policy, tmp_path, monkeypatch) -> None:
    """DeepSpeed reads weights by itself, in the place of the Trainer's own reading, and leaves the rest to it."""
    rewards = {"running": {"use": f"{Path(__file__)}:Running"}}
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    run_recipe(toy_recipe(policy, undisturbed, 4, rewards=rewards))
    monkeypatch.setenv("TOY_GONE", "2")
    with pytest.raises(RewardFailure):
        run_recipe(toy_recipe(policy, run, 4, rewards=rewards))
    monkeypatch.setenv("TOY_GONE", "99")
    monkeypatch.setattr(MentorGRPOTrainer, "_load_from_checkpoint", Trainer._load_from_checkpoint)
    run_recipe(toy_recipe(policy, run, 4, rewards=rewards))
    assert trace(run) == trace(undisturbed)


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


def test_a_run_goes_on_in_a_later_pass_over_its_prompts(policy, tmp_path, monkeypatch) -> None:
    """Three captions, two a step: stopped in the second pass, in whose order the third step begins."""
    captions = tmp_path / "captions.txt"
    captions.write_text("a red fox\ntwo blue boats\na green house\n", encoding="utf-8")
    prompts = {"data": {"source": "prompts", "train": str(captions), "val": str(captions)}, "weights": {"t2i": 1.0}}
    asked: list[list[str]] = []
    draw = trainer_module.roll_out

    def watched(policy, store, uids, *rest, **options):
        rollout = draw(policy, store, uids, *rest, **options)
        if len(uids) == 8:
            asked.append([prompt.plain_text for prompt in rollout.prompts[::4]])
        return rollout

    monkeypatch.setattr(trainer_module, "roll_out", watched)
    changes: dict[str, Any] = {
        "prompts": prompts,
        "monitoring": {"every": 100, "prompts": 2, "split": "val"},
        "checkpoints": {"every": 100},
    }
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    rewards = {"trap": {"use": f"{Path(__file__)}:Trap"}}
    run_recipe(toy_recipe(policy, undisturbed, STEPS, rewards=rewards, **changes))
    whole, asked[:] = asked.copy(), []
    monkeypatch.setenv("TOY_SIGNAL", "SIGTERM:2")
    with pytest.raises(Interrupted, match="stopped at step 3 of 6"):
        run_recipe(toy_recipe(policy, run, STEPS, rewards=rewards, **changes))
    run_recipe(toy_recipe(policy, run, STEPS, rewards=rewards, **changes))
    assert asked == whole
    passes = np.array(asked).reshape(4, 3).tolist()
    assert all(len(set(each)) == 3 for each in passes)
    assert any(each != passes[0] for each in passes), "each pass has an order of its own"
    assert trace(run) == trace(undisturbed)


def test_a_finished_run_is_left_alone(policy, whole, tmp_path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    run_recipe(recipe(policy, whole))
    assert (whole / "metrics.jsonl").read_bytes() == before
