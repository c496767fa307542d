"""Training of the emoji world's small scorers: CLIP, style and subject classifiers, EmojiBench's evaluator.

One plain loop. A step's pictures are a pure function of (seed, step), so a resumed run repeats exactly what an
uninterrupted one does. What a scorer is (network, loss, validation, file format) stands in tasks.py.
"""

from __future__ import annotations

import math
import os
import time
from typing import Any

import torch
from torch import nn

from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.progress import ProgressBar
from mentor_base.runlog import RunFolder, write_atomically
from mentor_base.settings import EmojiData, Optimisation
from mentor_rl.recipe import Tokenized
from mentor_rl.scorers.tasks import ScorerTask, build_task
from mentor_rl.scorers.views import Looks

STATE = "scorer.pt"
LOG_EVERY = 25


def train_scorer(
    *,
    scorer: str,
    data: EmojiData,
    optimisation: Optimisation,
    augment: str,
    tokenized: Tokenized | None,
    validate_every: int,
    seed: int,
    run: RunFolder,
) -> None:
    """Train one scorer and write it to ``run.final`` in the format that rewards and EmojiBench load (float16).

    Resumes from ``run.state``. Validation (val split and unseen subjects) runs, and the state is saved, every
    ``validate_every`` steps.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
        UserError: for settings that a contrastive loss cannot honour.
    """
    if run.finished:
        return
    _check(optimisation)
    if optimisation.threads:
        torch.set_num_threads(optimisation.threads)
    torch.manual_seed(seed)
    task = build_task(scorer, data, optimisation.batch, Looks.of(augment, tokenized), seed)
    loop = _Loop(task, optimisation, run)
    with InterruptGuard() as guard, ProgressBar(f"{scorer} scorer", optimisation.steps, loop.step) as bar:
        while loop.step < optimisation.steps:
            note = loop.advance()
            bar.advance(note=note)
            ends = loop.step == optimisation.steps
            if loop.step % validate_every == 0 or ends:
                run.log(loop.step, **loop.validate(), cpu_seconds=round(loop.cpu_seconds, 1))
                loop.save()
            elif guard.requested:
                loop.save()
            if guard.requested and not ends:
                raise Interrupted(f"{run.path}: stopped after step {loop.step}; the same command goes on from there")
    finish(task, scorer, loop, run)


def finish(task: ScorerTask, scorer: str, loop: _Loop, run: RunFolder) -> None:
    """Save the scorer, judge what was saved (float16 rounding included), write its card."""
    task.module.eval()
    with run.writing_final() as folder:
        metrics = task.save(folder)
        run.write_manifest(
            cpu_seconds=round(loop.cpu_seconds, 1), final_metrics=metrics, threads=torch.get_num_threads()
        )
        write_atomically(folder / "README.md", card(scorer, task, metrics, run))


class _Loop:
    """AdamW with warm-up and cosine, its state on disk, and the count of CPU seconds."""

    def __init__(self, task: ScorerTask, optimisation: Optimisation, run: RunFolder) -> None:
        self.task, self.optimisation, self.run, self.step = task, optimisation, run, 0
        matrices = [p for p in task.module.parameters() if p.ndim > 1]
        vectors = [p for p in task.module.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": optimisation.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=optimisation.lr,
            betas=optimisation.betas,
        )
        self._cpu_before, self._cpu_start = 0.0, time.process_time()
        self._resume()

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this run, earlier sessions included."""
        return self._cpu_before + time.process_time() - self._cpu_start

    def advance(self) -> str:
        """One optimizer step; returns a note for the bar."""
        self.task.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.optimisation)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.optimisation.precision == "bf16"):
            loss, parts = self.task.loss(self.step)
        if not math.isfinite(loss.item()):
            raise UserError(f"{self.run.path}: step {self.step}: loss is {loss.item()}; lower optimisation.lr")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.optimisation.max_grad_norm:
            nn.utils.clip_grad_norm_(self.task.module.parameters(), self.optimisation.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        if self.step % LOG_EVERY == 0:
            self.run.log(self.step, loss=round(loss.item(), 5), **{k: round(v, 5) for k, v in parts.items()})
        return f"loss {loss.item():.3f}"

    def validate(self) -> dict[str, float]:
        self.task.module.eval()
        return self.task.validate()

    def save(self) -> None:
        """Write the state so that a kill leaves either the old or the new one."""
        self.run.state.mkdir(exist_ok=True)
        temporary = self.run.state / f".{STATE}.{os.getpid()}"
        state = {
            "step": self.step,
            "model": self.task.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "cpu_seconds": self.cpu_seconds,
        }
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.run.state / STATE)

    def _resume(self) -> None:
        file = self.run.state / STATE
        if not file.exists():
            self.run.rewind(-1)
            return
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        self.task.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self._cpu_before = state["step"], state["cpu_seconds"]
        self.run.rewind(self.step)


def learning_rate(step: int, optimisation: Optimisation) -> float:
    """Linear warm-up, then a cosine down to ``final_lr`` of the peak; ``step`` counts from 0."""
    warm = max(1, round(optimisation.warmup * optimisation.steps))
    if step < warm:
        return optimisation.lr * (step + 1) / warm
    progress = (step - warm) / max(1, optimisation.steps - warm)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return optimisation.lr * (optimisation.final_lr + (1 - optimisation.final_lr) * cosine)


def card(scorer: str, task: ScorerTask, metrics: dict[str, float], run: RunFolder) -> str:
    """The README of a shipped checkpoint: what it is, what made it, how good it is."""
    manifest = run.manifest()
    lines = [
        f"# {scorer} scorer of the emoji world",
        "",
        task.about,
        "",
        f"- made by: `mentor train recipes/emoji/{scorer}.yaml`",
        f"- seed: {manifest.get('seed')}",
        f"- parameters: {sum(p.numel() for p in task.shipped().parameters()):,}, saved as float16",
        f"- hardware: {manifest['threads']} thread(s) of {manifest['cores']} {manifest['machine']} cores, no GPU",
        f"- CPU minutes: {manifest['cpu_seconds'] / 60:.1f}",
        f"- torch {manifest['versions']['torch']}, transformers {manifest['versions']['transformers']}",
        "- trained on sprites of the train split only; drawings and their licences: DATA_LICENSES.md",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in metrics.items()),
        "",
    ]
    return "\n".join(lines)


def _check(optimisation: Optimisation) -> None:
    if optimisation.micro_batch not in (None, optimisation.batch):
        raise UserError(
            f"optimisation.micro_batch: expected none (scorers contrast the pictures of a whole batch), "
            f"found {optimisation.micro_batch}"
        )
    if optimisation.gradient_checkpointing:
        raise UserError("optimisation.gradient_checkpointing: expected false (scorers are small), found true")
