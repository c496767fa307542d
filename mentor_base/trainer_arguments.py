"""What every run of ours asks of transformers' Trainer, supervised stages and GRPO alike."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_base.settings import AdamW, Checkpoints
from mentor_base.trackers import PROJECT, tracked_name

Arguments = TypeVar("Arguments", bound=TrainingArguments)

# transformers renamed the field in 5.x; the old name warns there.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


def shared_arguments(optimisation: AdamW, checkpoints: Checkpoints, seed: int, run: RunFolder) -> dict[str, Any]:
    """Fields of TrainingArguments that do not depend on the kind of training.

    Raises:
        UserError: a recipe in float32 under a launch file in bf16, which would win without a word.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", optimisation.precision):
        raise UserError(
            f"optimisation.precision: expected '{launched}' as the launch file has it, "
            f"found '{optimisation.precision}'; change the recipe, or give accelerate launch --mixed_precision no"
        )
    return {
        "output_dir": str(run.state),
        "max_steps": optimisation.steps,
        "learning_rate": optimisation.lr,
        "weight_decay": optimisation.weight_decay,
        "adam_beta1": optimisation.betas[0],
        "adam_beta2": optimisation.betas[1],
        "max_grad_norm": optimisation.max_grad_norm,
        "optim": "adamw_torch_fused",
        "bf16": optimisation.precision == "bf16",
        CHECKPOINTING: optimisation.gradient_checkpointing,
        "use_cpu": not torch.accelerator.is_available(),  # under torchrun, accelerate starts gloo only if told
        "logging_nan_inf_filter": False,
        "save_steps": checkpoints.every,
        "save_total_limit": None,  # CheckpointCallback deletes, in a safe order
        "eval_strategy": "no",  # our callbacks ask
        "report_to": "none",  # trackers.py makes the callbacks
        "project": PROJECT,
        "run_name": tracked_name(run),
        "seed": seed,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def one_device(args: Arguments) -> Arguments:
    """Several devices need torchrun or accelerate launch, never DataParallel."""
    args._n_gpu = min(1, args.n_gpu)
    return args
