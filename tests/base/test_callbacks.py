"""Callbacks of a run: which states are kept, interruption, log lines, gradients that are no numbers."""

from __future__ import annotations

import copy
import json
import math
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from mentor_base.callbacks import (
    PATIENCE,
    CheckpointCallback,
    Diverged,
    FiniteGradients,
    InterruptCallback,
    RunLogCallback,
)
from mentor_base.errors import UserError
from mentor_base.interrupt import InterruptGuard
from mentor_base.runlog import RunFolder
from mentor_base.states import all_states, publish


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", {"seed": 1})


@pytest.fixture
def args(run: RunFolder) -> TrainingArguments:
    return TrainingArguments(output_dir=str(run.state), report_to="none")


def test_old_states_go_once_a_new_one_is_whole(run: RunFolder, args: TrainingArguments) -> None:
    for step in (8, 9, 10):
        written = run.state / ".partial" / f"checkpoint-{step}"
        written.mkdir(parents=True)
        publish(written, run.state)
    CheckpointCallback(run, keep=2).on_save(args, TrainerState(global_step=10), TrainerControl())
    assert [state.name for state in all_states(run.state)] == ["checkpoint-9", "checkpoint-10"]


def test_a_log_line_goes_before_a_state(run: RunFolder, args: TrainingArguments) -> None:
    callback = CheckpointCallback(run, keep=1)
    for saves in (False, True):
        control = callback.on_step_end(args, TrainerState(global_step=1), TrainerControl(should_save=saves))
        assert control.should_log == saves


def test_full_disk_is_named_before_the_state_is_written(
    run: RunFolder, args: TrainingArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    whole, dealt_out = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)
    dealt_out.weight.data = torch.empty(0)  # as ZeRO-3 leaves it
    dealt_out.weight.ds_numel = 8 * 8  # type: ignore[attr-defined]
    for model in (whole, dealt_out):
        with pytest.raises(UserError, match="no space left on the disk"):
            CheckpointCallback(run, keep=1).on_step_end(
                args, TrainerState(global_step=1), TrainerControl(should_save=True), model=model
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


def test_log_lines_and_a_loss_or_gradient_that_is_no_number(run: RunFolder, args: TrainingArguments) -> None:
    callback = RunLogCallback(run, FiniteGradients())
    main, other = TrainerState(global_step=5, is_world_process_zero=True), TrainerState(is_world_process_zero=False)
    callback.on_log(args, main, TrainerControl(), logs={"loss": 2.0, "learning_rate": 0.1, "epoch": 0.3})
    callback.on_log(args, other, TrainerControl(), logs={"loss": 2.0})
    callback.on_log(args, main, TrainerControl(), logs={"train_runtime": 9.0, "train_loss": 2.0})
    (line,) = [json.loads(text) for text in run.metrics_file.read_text().splitlines()]
    assert {"step": 5, "loss": 2.0, "lr": 0.1}.items() <= line.items()
    assert "epoch" not in line
    for name, said in (("loss", "loss"), ("grad_norm", "gradient norm")):
        with pytest.raises(UserError, match=f"step 5: expected a finite {said}, found nan"):
            callback.on_log(args, main, TrainerControl(), logs={"loss": 1.0, name: float("nan")})


def test_an_update_without_a_finite_gradient_is_skipped_and_counted(run: RunFolder, args: TrainingArguments) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.5)
    gradients, state = FiniteGradients(), TrainerState(global_step=4, is_world_process_zero=True)
    log = RunLogCallback(run, gradients)

    def update(factor: float) -> None:
        (layer(torch.ones(1, 3)).sum() * factor).backward()
        gradients.on_pre_optimizer_step(args, state, TrainerControl(), model=layer)
        optimizer.step()
        optimizer.zero_grad()
        log.on_log(args, state, TrainerControl(), logs={"loss": factor, "grad_norm": factor})

    update(1.0)
    held = copy.deepcopy((layer.state_dict(), optimizer.state_dict()))
    for factor in (math.nan, math.inf):
        update(factor)
    assert str((layer.state_dict(), optimizer.state_dict())) == str(held)
    update(1.0)
    assert [line.get("skipped_updates", 0) for line in run.metrics()] == [0, 1, 1, 0]
    for _ in range(PATIENCE - 1):
        update(math.nan)
    with pytest.raises(Diverged, match="step 5: the gradients of 3 updates in a row were no finite numbers"):
        update(math.nan)
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
