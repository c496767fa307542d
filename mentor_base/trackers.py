"""Trackers that a run reports to beside its own folder (recipe: ``report_to``); each is an extra of the same name.

wandb        RUN/wandb, all of it, so that an offline run (``WANDB_MODE=offline``) can be carried elsewhere and synced;
             project WANDB_PROJECT or "mentor-rl"
tensorboard  RUN/tensorboard, or TENSORBOARD_LOGGING_DIR
trackio      its own folder (TRACKIO_DIR); project "mentor-rl"

A run that is taken up goes on under the same name (and id, where the tracker knows one).
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder

PROJECT = "mentor-rl"


def check_trackers(report_to: Sequence[str]) -> None:
    """Refuse, before anything is loaded, a tracker that is not installed.

    Raises:
        UserError: names the extra.
    """
    for name in report_to:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"report_to: {error}; install the extra: pip install 'mentor-rl[{name}]'") from error


def tracker_callbacks(report_to: Sequence[str], run: RunFolder) -> list[TrainerCallback]:
    """The Trainer's callbacks for these trackers, in the order given; to be put before all that log."""
    make = {"wandb": _Wandb, "tensorboard": _tensorboard, "trackio": lambda run: TrackioCallback()}
    return [make[name](run) for name in report_to]


def tracked_name(run: RunFolder) -> str:
    """The run's name among all runs of a project: its folder's, and what tells it from others of that name."""
    started = f"{run.path.resolve()} {run.manifest().get('started')}"
    return f"{run.path.resolve().name}-{hashlib.sha256(started.encode()).hexdigest()[:6]}"


class _Wandb(WandbCallback):
    """transformers' callback in the run's folder, under a name and id that a resumed run has again."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self.run = run
        self._moved_data = False

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self._wandb.run is None:
            name = tracked_name(self.run)
            self._moved_data = "WANDB_DATA_DIR" not in os.environ
            if self._moved_data:  # pictures of a table wait there to be uploaded; by default in the home folder
                os.environ["WANDB_DATA_DIR"] = str(self.run.path / "wandb")
            offline = os.environ.get("WANDB_MODE", "online") != "online"
            self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=name,
                id=name,
                resume=None if offline else "allow",
                dir=str(self.run.path),
            )
        super().setup(args, state, model, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self._wandb.finish()
            if self._moved_data:
                del os.environ["WANDB_DATA_DIR"]


def _tensorboard(run: RunFolder) -> TensorBoardCallback:
    callback = TensorBoardCallback()
    callback.logging_dir = callback.logging_dir or str(run.path / "tensorboard")
    return callback
