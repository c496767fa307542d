"""Callbacks of a GRPO run, beside those that all trainers share (mentor_base/callbacks.py). Free of trl."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mentor_base.callbacks import InterruptCallback
from mentor_base.interrupt import InterruptGuard
from mentor_rl.algorithm import MovingReference

REFERENCE_FILE = "reference.safetensors"  # beside a state, where the reference moves


class PhaseClock(TrainerCallback):
    """Seconds of an optimizer step by phase; what is in no phase is "update": forward, backward, optimizer."""

    def __init__(self) -> None:
        self._phases: dict[str, float] = defaultdict(float)
        self._began = time.perf_counter()
        self._total = 0.0

    @contextmanager
    def phase(self, name: str | None) -> Iterator[None]:
        """Count the seconds of the block, with all that it gave to a GPU; None: leave them to "update"."""
        if name is None:
            yield
            return
        began = _when_done()
        yield
        self._phases[name] += _when_done() - began

    def metrics(self, pictures: int, tokens: int) -> dict[str, float]:
        """Seconds of the last step by phase; pictures trained on per second of the step, tokens drawn per second of its
        rollout (where it drew). Starts anew.

        Args:
            pictures: of a step, over all processes.
            tokens: of a picture.
        """
        drawing = self._phases.get("rollout", 0.0)
        phases = {**dict.fromkeys(("rollout", "reward", "reference"), 0.0), **self._phases}
        phases["update"] = self._total - sum(phases.values())
        self._phases.clear()
        rounded = {f"seconds/{name}": round(seconds, 4) for name, seconds in phases.items()}
        speeds = {"pictures_per_second": round(pictures / max(self._total, 1e-9), 2)}
        if drawing > 0.0:
            speeds["tokens_per_second"] = round(pictures * tokens / drawing, 1)
        return rounded | speeds

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._total = time.perf_counter() - self._began


def _when_done() -> float:
    """The time at which the GPU has done what it was given: a call returns long before its kernels have run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class MonitorCallback(TrainerCallback):
    """Calls ``watch(step)`` before the first step, every so many steps, and after the last."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.watch: Callable[[int], None] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0 and self.watch is not None:
            self.watch(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = state.global_step % self.every == 0 or state.global_step >= state.max_steps
        if due and self.watch is not None:
            self.watch(state.global_step)


class ReferenceMover(TrainerCallback):
    """Moves the reference towards the policy: every so many steps, reference = (1 - mix) reference + mix policy.

    Only the trained parameters move; the others are equal from the start, and the tokenizer is one for both.

    Args:
        policy, reference: the same model twice.
        forget: drops what was computed from the reference as it was.
    """

    def __init__(
        self, settings: MovingReference, policy: nn.Module, reference: nn.Module, forget: Callable[[], None]
    ) -> None:
        theirs = dict(reference.named_parameters())
        self.settings, self.forget = settings, forget
        self.pairs = {name: (theirs[name], own) for name, own in policy.named_parameters() if own.requires_grad}

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.settings.every == 0:
            for theirs, own in self.pairs.values():
                theirs.lerp_(own, self.settings.mix)
            self.forget()

    def save(self, state: Path) -> None:
        """Write the moved parameters beside a state."""
        save_file({name: theirs.detach().cpu() for name, (theirs, _) in self.pairs.items()}, state / REFERENCE_FILE)

    @torch.no_grad()
    def load(self, state: Path) -> None:
        """Take up what ``save`` wrote."""
        held = load_file(state / REFERENCE_FILE)
        for name, (theirs, _) in self.pairs.items():
            theirs.copy_(held[name])
        self.forget()


class BetweenRollouts(InterruptCallback):
    """Stops only where a rollout is used up: a state in its midst could not be resumed exactly."""

    def __init__(self, guard: InterruptGuard, inner_iterations: int) -> None:
        super().__init__(guard)
        self.inner_iterations = inner_iterations

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step % self.inner_iterations:
            return control
        return super().on_step_end(args, state, control, **kwargs)
