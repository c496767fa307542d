"""What a GRPO recipe settles before its first step: numbers that divide, parts that train, no dropout. Free of trl."""

from __future__ import annotations

from mentor_base.errors import UserError
from mentor_base.model import MentorForConditionalGeneration
from mentor_rl.recipe import GrpoRecipe


def pictures_per_process(recipe: GrpoRecipe, processes: int) -> int:
    """Pictures per optimizer step and process: ``group_size x prompts_per_step`` over all of them.

    Raises:
        UserError: numbers that do not divide, or settings that contradict each other.
    """
    algorithm = recipe.algorithm
    pictures = algorithm.group_size * algorithm.prompts_per_step
    micro = algorithm.micro_batch or max(1, pictures // processes)
    if pictures % (micro * processes):
        raise UserError(
            f"algorithm: expected group_size x prompts_per_step to be a multiple of micro_batch x processes = "
            f"{micro} x {processes}, found {pictures}"
        )
    if recipe.checkpoints.every % algorithm.inner_iterations:
        raise UserError(
            f"checkpoints.every: expected a multiple of algorithm.inner_iterations = {algorithm.inner_iterations}, "
            f"found {recipe.checkpoints.every}: a state is saved between two rollouts"
        )
    if algorithm.aggregation == "normalize_then_sum" and algorithm.scale_rewards != "group":
        raise UserError(
            f"algorithm.scale_rewards: expected 'group' with aggregation 'normalize_then_sum', which has no say in it; "
            f"found '{algorithm.scale_rewards}'"
        )
    if not recipe.train.parts:
        raise UserError("train: expected at least one part to train, found none")
    if recipe.train.lora is not None and recipe.train.lora.dropout:
        raise UserError(
            "train.lora.dropout: expected 0 (the policy that is optimised has to be the one that was sampled), "
            f"found {recipe.train.lora.dropout:g}"
        )
    if not any(entry.role == "train" for entry in recipe.rewards.values()):
        raise UserError("rewards: expected at least one with role 'train', found monitors only")
    return pictures // processes


def silence_dropout(policy: MentorForConditionalGeneration) -> None:
    """No dropout anywhere: the policy that is optimised has to be the one that was sampled.

    trl's ``disable_dropout`` reaches ``nn.Dropout`` only, not the rates that attention layers and our decoder hold.
    """
    policy.config.dropout = 0.0
    for module in policy.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
