"""What every training run on transformers.Trainer shares: the run folder's log, interruption, progress, gradients that
are no numbers, which states are kept.

    callbacks = run_callbacks(run, guard, label="stage 1", keep=2)
    trainer = MyTrainer(..., callbacks=callbacks); quieten(trainer)     # MyTrainer(LossAnew, WholeStates, Trainer)
    trainer.train(resume_from_checkpoint=take_up(run))

The Trainer deletes older states before it calls the new one saved. Here they go after it; set
``save_total_limit=None`` in the TrainingArguments.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mentor_base.errors import UserError
from mentor_base.interrupt import InterruptGuard
from mentor_base.progress import ProgressBar
from mentor_base.runlog import RunFolder
from mentor_base.states import all_states, remove

logger = logging.getLogger(__name__)

RENAMED = {"learning_rate": "lr"}
CLOSING_SUMMARY = "train_runtime"  # marks the Trainer's last log call, which repeats what the run folder knows
PATIENCE = 3  # updates in a row without a finite gradient that end a run


def run_callbacks(run: RunFolder, guard: InterruptGuard, label: str, keep: int) -> list[TrainerCallback]:
    """All callbacks of a run, in the order they rely on: an interruption asks for a state, a state for a log line."""
    gradients = FiniteGradients()
    return [
        gradients,
        InterruptCallback(guard),
        CheckpointCallback(run, keep),
        RunLogCallback(run, gradients),
        ProgressCallback(label),
    ]


def quieten(trainer: Trainer) -> None:
    """Undo what the Trainer does unasked: its own bar, printed dictionaries, and a key in the model's config.

    ProgressCallback and RunLogCallback take the place of the first two. The key, ``use_cache``, is no field of a
    policy's config, and strict loading refuses a saved config that has it.
    """
    for callback in (transformers.PrinterCallback, transformers.ProgressCallback):
        trainer.remove_callback(callback)
    hide_bars()
    config = trainer.model.config
    if not hasattr(type(config), "use_cache"):
        vars(config).pop("use_cache", None)


def hide_bars() -> None:
    """No bars of transformers' own: one flashes past for each file that it reads or writes."""
    transformers.logging.disable_progress_bar()


class LossAnew(Trainer):
    """A Trainer whose loss is summed from zero for each line of the log.

    The Trainer subtracts what it has logged, which leaves a NaN in the sum for the rest of the run.
    """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._tr_loss.zero_()
        super().log(logs, start_time)


class Diverged(UserError):
    """Training gives no numbers any more. The weights are those of the last good update."""


class FiniteGradients(TrainerCallback):
    """Skips an update whose gradient is no number: weights, moments and decay stay as they are, the schedule goes on.

    One such gradient would make every weight NaN, and the next state would keep them so. What is skipped depends on the
    gradient alone, so a resumed run skips the same updates. Under DeepSpeed, which updates inside of its backward pass,
    there is nothing left to skip: there RunLogCallback ends the run before such weights reach a state.

    Raises:
        Diverged: after ``PATIENCE`` skipped updates in a row.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._since_log = 0

    def taken(self) -> int:
        """Updates skipped since the last call."""
        count, self._since_log = self._since_log, 0
        return count

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        parameters = [] if model is None else [p for p in model.parameters() if p.grad is not None]
        if _all_finite([p.grad for p in parameters if p.grad is not None]):
            self._in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None
        self._in_a_row += 1
        self._since_log += 1
        step = state.global_step + 1
        if self._in_a_row >= PATIENCE:
            raise Diverged(
                f"step {step}: the gradients of {PATIENCE} updates in a row were no finite numbers; "
                "lower optimisation.lr, or raise optimisation.warmup"
            )
        if state.is_world_process_zero:
            logger.warning("step %d: the gradient is no finite number; this update is skipped", step)


def _all_finite(gradients: list[torch.Tensor]) -> bool:
    if not gradients:
        return True
    norm = torch.nn.utils.get_total_norm(gradients)
    return bool((norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite())


class RunLogCallback(TrainerCallback):
    """Writes each of the Trainer's log calls as one line of metrics.jsonl; the main process only.

    ``cpu_seconds`` counts the main process' CPU time, earlier sessions of the run included; ``skipped_updates`` those
    since the line before, and stands there only where some were.

    Raises:
        UserError: when loss or gradient are no numbers and the update was not skipped: the weights are spoilt.
    """

    def __init__(self, run: RunFolder, gradients: FiniteGradients) -> None:
        self.run, self.gradients = run, gradients
        self._cpu_before = max((line.get("cpu_seconds", 0.0) for line in run.metrics()), default=0.0) - _cpu_seconds()

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this process and its finished children, and of earlier sessions."""
        return self._cpu_before + _cpu_seconds()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or CLOSING_SUMMARY in logs:
            return
        values = {RENAMED.get(name, name): value for name, value in logs.items() if name != "epoch"}
        skipped = self.gradients.taken() if "loss" in values else 0
        for name, said in (("loss", "loss"), ("grad_norm", "gradient norm")):
            if not skipped and not math.isfinite(values.get(name, 0.0)):
                raise UserError(
                    f"{self.run.path}: step {state.global_step}: expected a finite {said}, found {values[name]}; "
                    "lower optimisation.lr, or raise optimisation.warmup"
                )
        if skipped:
            values["skipped_updates"] = skipped
        if state.is_world_process_zero:
            self.run.log(state.global_step, **values, cpu_seconds=round(self.cpu_seconds, 2))


class InterruptCallback(TrainerCallback):
    """Turns a requested interruption into a saved state and a stop after the running step.

    ``stopped`` tells the caller, who raises Interrupted. With several processes the request of any one stops them all
    at the same step: signals reach them at different moments, and one that went on would wait for ever.
    """

    def __init__(self, guard: InterruptGuard) -> None:
        self.guard = guard
        self.stopped = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if _requested_anywhere(self.guard.requested, args.device) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
        return control


class ProgressCallback(TrainerCallback):
    """The project's progress bar in place of tqdm; the main process only. ``close`` it when training raises.

    It begins with the first step: what is drawn and measured before it says nothing about the time left.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._bar: ProgressBar | None = None
        self._note = ""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            return
        quiet = not state.is_world_process_zero
        self._bar = ProgressBar(self.label, total=state.max_steps, done=state.global_step, quiet=quiet)
        self._bar.__enter__()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = [f"{name} {logs[name]:.4g}" for name in ("loss", "reward") if logs and name in logs]
        self._note = ", ".join(shown) or self._note

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.advance(note=self._note)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self, error: BaseException | None = None) -> None:
        """Stop drawing. Safe to call twice."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.__exit__(type(error) if error else None, error, None)


class CheckpointCallback(TrainerCallback):
    """Deletes the states beyond ``keep`` once a new one is whole.

    A state is always preceded by a log line, so that no metric of a resumed run averages over the break.

    Raises:
        UserError: before a state is written for which the disk has no space.
    """

    def __init__(self, run: RunFolder, keep: int) -> None:
        self.run, self.keep = run, keep

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        if control.should_save:
            control.should_log = True
            if model is not None and state.is_world_process_zero:
                _check_space(self.run.path, _state_bytes(model))
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for old in all_states(Path(args.output_dir))[: -self.keep]:
                remove(old)


def _state_bytes(model: torch.nn.Module) -> int:
    """Weights, and the two moments of AdamW for those that are trained. ZeRO-3's are empty here, and say their size."""
    sizes = [(p, getattr(p, "ds_numel", p.numel()) * p.element_size()) for p in model.parameters()]
    return sum(size * (3 if p.requires_grad else 1) for p, size in sizes)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: no space left on the disk: expected {needed / 2**20:.0f} MiB free for a state, "
            f"found {free / 2**20:.0f} MiB"
        )


def _requested_anywhere(requested: bool, device: torch.device) -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return requested
    flag = torch.tensor([int(requested)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
