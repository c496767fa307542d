"""States of a run: only whole ones count, and the old one goes after the new one is whole."""

from __future__ import annotations

import json
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from mentor_base.callbacks import (
    CheckpointCallback,
    InterruptCallback,
    RunLogCallback,
    find_resumable,
    mark_complete,
    take_up,
)
from mentor_base.errors import UserError
from mentor_base.interrupt import InterruptGuard
from mentor_base.runlog import RunFolder


def state_at(states: Path, step: int, complete: bool = True) -> Path:
    folder = states / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "optimizer.pt").write_bytes(b"y" * 50)
    if complete:
        mark_complete(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", {"seed": 1})


@pytest.fixture
def args(run: RunFolder) -> TrainingArguments:
    return TrainingArguments(output_dir=str(run.state), report_to="none")


def test_newest_whole_state_is_found_and_broken_ones_go(tmp_path: Path) -> None:
    state_at(tmp_path, 90)
    whole = state_at(tmp_path, 200)  # 200 > 90 as numbers, not as text
    unmarked = state_at(tmp_path, 300, complete=False)
    cut = state_at(tmp_path, 400)
    (cut / "optimizer.pt").write_bytes(b"y" * 49)
    lost = state_at(tmp_path, 500)
    (lost / "model.safetensors").unlink()
    assert find_resumable(tmp_path, prune=False) == whole
    assert unmarked.exists()
    assert find_resumable(tmp_path) == whole
    assert not unmarked.exists()
    assert not cut.exists()
    assert not lost.exists()


def test_no_state_is_none(tmp_path: Path) -> None:
    assert find_resumable(tmp_path / "absent") is None


def test_take_up_forgets_later_metrics(run: RunFolder) -> None:
    for step in (0, 10, 20, 25):
        run.log(step, loss=1.0)
    state_at(run.state, 20)
    assert take_up(run) == run.state / "checkpoint-20"
    assert [line["step"] for line in run.metrics()] == [0, 10, 20]
    shutil.rmtree(run.state)
    assert take_up(run) is None
    assert list(run.metrics()) == []


def test_old_states_go_only_after_the_new_one_is_whole(run: RunFolder, args: TrainingArguments) -> None:
    states = [state_at(run.state, step, complete=step < 30) for step in (10, 20, 30)]
    callback = CheckpointCallback(run, keep=1)
    callback.on_save(args, TrainerState(global_step=30), TrainerControl())
    assert [state.exists() for state in states] == [False, False, True]
    assert find_resumable(run.state) == states[2]


def test_full_disk_is_named_before_the_state_is_written(
    run: RunFolder, args: TrainingArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(UserError, match="no space left on the disk"):
        CheckpointCallback(run, keep=1).on_step_end(
            args, TrainerState(global_step=1), TrainerControl(should_save=True), model=torch.nn.Linear(8, 8)
        )


def test_signal_saves_and_stops_but_not_after_the_last_step(args: TrainingArguments) -> None:
    with InterruptGuard() as guard:
        callback = InterruptCallback(guard)
        control = callback.on_step_end(args, TrainerState(global_step=1, max_steps=3), TrainerControl())
        assert not control.should_save
        assert not callback.stopped
        signal.raise_signal(signal.SIGTERM)
        control = callback.on_step_end(args, TrainerState(global_step=3, max_steps=3), TrainerControl())
        assert not callback.stopped
        control = callback.on_step_end(args, TrainerState(global_step=2, max_steps=3), TrainerControl())
        assert control.should_save
        assert control.should_training_stop
        assert callback.stopped


def test_log_lines_and_a_loss_that_is_no_number(run: RunFolder, args: TrainingArguments) -> None:
    callback = RunLogCallback(run)
    main, other = TrainerState(global_step=5, is_world_process_zero=True), TrainerState(is_world_process_zero=False)
    callback.on_log(args, main, TrainerControl(), logs={"loss": 2.0, "learning_rate": 0.1, "epoch": 0.3})
    callback.on_log(args, other, TrainerControl(), logs={"loss": 2.0})
    callback.on_log(args, main, TrainerControl(), logs={"train_runtime": 9.0, "train_loss": 2.0})
    (line,) = [json.loads(text) for text in run.metrics_file.read_text().splitlines()]
    assert {"step": 5, "loss": 2.0, "lr": 0.1}.items() <= line.items()
    assert "epoch" not in line
    with pytest.raises(UserError, match=r"step 5: expected a finite loss, found nan"):
        callback.on_log(args, main, TrainerControl(), logs={"loss": float("nan")})
