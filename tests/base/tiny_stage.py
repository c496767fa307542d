"""A supervised stage that takes seconds, for the tests; also a script, for tests that kill it or run several of it.

python tiny_stage.py POLICY RUN [--kill-at STEP] [--kill-in-state STEP] [--no-dropout]
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import mentor_base.sft
from mentor_base.build import build_policy
from mentor_base.checkpoint import load_policy, save_policy
from mentor_base.data.mixture import world_of
from mentor_base.runlog import RunFolder
from mentor_base.settings import (
    Checkpoints,
    EmojiData,
    Mixture,
    Optimisation,
    PolicyModel,
    Sampling,
    Stage,
    TrainedParts,
    Validation,
)
from mentor_base.vq import VQConfig, VQModel

DATA = EmojiData(styles=("noto", "blob"))
STEPS = 9


def save_tiny_policy(folder: Path) -> Path:
    """An untrained policy of 0.1 M parameters around an untrained tokenizer; dropout on, so that resume is tested."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vq = VQModel(
        VQConfig(
            image_size=64,
            channels=16,
            multipliers=(1, 2),
            latent_channels=16,
            codebook_size=64,
            stem_patch=8,
            normalisation="none",
            attention=False,
        )
    )
    options: dict[str, Any] = {
        "hidden_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "dropout": 0.1,
        "t5_config.d_model": 32,
        "t5_config.d_kv": 16,
        "t5_config.num_heads": 2,
        "t5_config.d_ff": 64,
        "t5_config.num_layers": 1,
        "t5_config.dropout_rate": 0.1,
    }
    policy, processor = build_policy(PolicyModel(options=options), vq, world_of(DATA).corpus())
    save_policy(policy, processor, folder)
    return folder


def train_tiny(policy: Path, folder: Path, **changes: Any) -> RunFolder:
    """Train for STEPS steps; ``changes`` replace arguments of train_stage."""
    weights: Any = changes.pop("weights", {"t2i": 1, "reconstruction": 1, "segmentation": 1})
    train = changes.pop("train", TrainedParts(text_encoder=True))
    settings: dict[str, Any] = {
        "init": str(policy),
        "tokenizer": None,
        "model": None,
        "stage": Stage(name="alignment", mixture=Mixture(data=DATA, weights=weights), train=train),
        "optimisation": Optimisation(lr=3e-3, steps=STEPS, batch=4, threads=1),
        "validation": Validation(every=6, examples=4, grid=1, sampling=Sampling()),
        "checkpoints": Checkpoints(every=3),
        "report_to": (),
        "seed": 5,
    }
    run = open_run(folder)
    mentor_base.sft.train_stage(**(settings | changes), run=run)
    return run


def open_run(folder: Path) -> RunFolder:
    """The run folder; only the first process creates it."""
    while int(os.environ.get("RANK", "0")) > 0 and not (folder / "manifest.json").exists():
        time.sleep(0.05)
    return RunFolder.open(folder, {"seed": 5})


def without_dropout(model: Any, processor: Any) -> tuple[Any, Any]:
    """The same policy with every dropout off."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    model.config.dropout = 0.0
    return model, processor


class KillAt(TrainerCallback):
    """kill -9 of this process when a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class KilledInState(mentor_base.sft.StageTrainer):
    """kill -9 of this process between two files of a state."""

    step = -1

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_optimizer_and_scheduler(output_dir)


def also(callback: TrainerCallback) -> Any:
    """``run_callbacks`` with one more callback."""
    usual = mentor_base.sft.run_callbacks
    return lambda *args, **kwargs: [*usual(*args, **kwargs), callback]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("policy", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--kill-in-state", type=int, default=-1)
    parser.add_argument("--no-dropout", action="store_true")
    given = parser.parse_args()
    if given.no_dropout:
        mentor_base.sft.load_policy = lambda path: without_dropout(*load_policy(path))
    KilledInState.step = given.kill_in_state
    mentor_base.sft.StageTrainer = KilledInState  # type: ignore[misc]
    mentor_base.sft.run_callbacks = also(KillAt(given.kill_at))
    train_tiny(given.policy, given.run)
