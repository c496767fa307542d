"""What every training run on transformers.Trainer shares: the run folder's log, interruption, progress, whole states.

    callbacks = run_callbacks(run, guard, label="stage 1", keep=2)
    trainer = Trainer(..., callbacks=callbacks); quieten(trainer)
    trainer.train(resume_from_checkpoint=take_up(run))

The Trainer writes a state as several files in turn and deletes older states before it calls the new one saved: a kill
in between leaves a folder that it would later try to resume. Here a state counts only once a marker, written last,
lists its files and their sizes; older states go after that. Set ``save_total_limit=None`` in the TrainingArguments.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mentor_base.errors import UserError
from mentor_base.interrupt import InterruptGuard
from mentor_base.progress import ProgressBar
from mentor_base.runlog import RunFolder, write_atomically

logger = logging.getLogger(__name__)

STATE_MARKER = "complete.json"
STATE_PREFIX = "checkpoint-"  # the Trainer's own name for its states
RENAMED = {"learning_rate": "lr"}
CLOSING_SUMMARY = "train_runtime"  # marks the Trainer's last log call, which repeats what the run folder knows


def run_callbacks(run: RunFolder, guard: InterruptGuard, label: str, keep: int) -> list[TrainerCallback]:
    """All callbacks of a run, in the order they rely on: an interruption asks for a state, a state for a log line."""
    return [InterruptCallback(guard), CheckpointCallback(run, keep), RunLogCallback(run), ProgressCallback(label)]


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


class RunLogCallback(TrainerCallback):
    """Writes each of the Trainer's log calls as one line of metrics.jsonl; the main process only.

    ``cpu_seconds`` counts the main process' CPU time, earlier sessions of the run included.

    Raises:
        UserError: when the loss is no longer a number: what would follow is not worth its hours.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
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
        if not math.isfinite(values.get("loss", 0.0)):
            raise UserError(
                f"{self.run.path}: step {state.global_step}: expected a finite loss, found {values['loss']}; "
                "lower optimisation.lr, or raise optimisation.warmup"
            )
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
    """The project's progress bar in place of tqdm; the main process only. ``close`` it when training raises."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._bar: ProgressBar | None = None
        self._note = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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
    """Completes each saved state with its marker, and only then deletes the states beyond ``keep``.

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
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # every process writes the state of its own random numbers
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"{STATE_PREFIX}{state.global_step}")
            for old in _states(Path(args.output_dir))[: -self.keep]:
                shutil.rmtree(old)


def mark_complete(state: Path) -> None:
    """Write the marker of a state: its files and their sizes in bytes, all flushed to the disk before."""
    sizes = _sizes(state)
    for name in sizes:
        with (state / name).open("rb") as file:
            os.fsync(file.fileno())
    write_atomically(state / STATE_MARKER, json.dumps({"files": sizes}, indent=1) + "\n")


def missing_part(state: Path) -> str | None:
    """What keeps a state from being complete, in words; None when it is."""
    try:
        expected = json.loads((state / STATE_MARKER).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{STATE_MARKER} is missing"
    found = _sizes(state)
    for name, size in expected.items():
        if found.get(name) != size:
            return f"{name}: expected {size} bytes, found {found.get(name, 'no file')}"
    return None


def find_resumable(states: Path, prune: bool = True) -> Path | None:
    """The newest complete state in a folder of states, or None. With ``prune``, incomplete ones are deleted.

    A state that a kill cut short is never returned.
    """
    newest = None
    for state in _states(states):
        fault = missing_part(state)
        if fault is None:
            newest = state
        elif prune:
            logger.warning("%s: deleted a state that was cut short (%s)", state, fault)
            shutil.rmtree(state)
    return newest


def take_up(run: RunFolder, main_process: bool = True) -> Path | None:
    """Where to resume a run: its newest complete state, or None to start anew. Later metrics are forgotten.

    Only the main process changes the folder. Make the RunLogCallback before: it reads the time spent so far.
    """
    state = find_resumable(run.state, prune=main_process)
    if main_process:
        run.rewind(step_of(state) if state is not None else -1)
        if state is not None:
            logger.warning("%s: goes on from step %d", run.path, step_of(state))
    return state


def step_of(state: Path) -> int:
    """The optimizer step of a state folder."""
    return int(state.name.removeprefix(STATE_PREFIX))


def _states(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{STATE_PREFIX}*") if path.name.removeprefix(STATE_PREFIX).isdigit()]
    return sorted(found, key=step_of)


def _sizes(state: Path) -> dict[str, int]:
    files = (path for path in sorted(state.rglob("*")) if path.is_file() and path.name != STATE_MARKER)
    return {path.relative_to(state).as_posix(): path.stat().st_size for path in files}


def _state_bytes(model: torch.nn.Module) -> int:
    """Weights, and the two moments of AdamW for those that are trained."""
    return sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in model.parameters())


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
