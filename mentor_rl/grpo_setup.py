"""What a GRPO recipe settles before its first step: numbers that divide, no dropout, rewards that apply, what the
monitors compare with. Free of trl.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mentor_rewards.composite import Composite, columns_of
from PIL import Image

from mentor_base.batch_split import launched_engine
from mentor_base.data.mixture import World
from mentor_base.data.schema import Example, Prompt
from mentor_base.errors import UserError
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.settings import PromptData
from mentor_rl.contradictions import refuse
from mentor_rl.monitors.copying import ANSWERS
from mentor_rl.monitors.hacking import HackingAlarm
from mentor_rl.recipe import GrpoRecipe
from mentor_rl.rollout import Rollout, reward_batch

MONITOR_SEED = 0  # what is watched is the same for all runs, so that their curves can be compared


def pictures_per_process(recipe: GrpoRecipe, processes: int) -> int:
    """Pictures per optimizer step and process: ``group_size x prompts_per_step`` over all of them.

    Raises:
        UserError: numbers that do not divide, or settings that contradict each other.
    """
    refuse(recipe)
    algorithm = recipe.algorithm
    pictures = algorithm.group_size * algorithm.prompts_per_step
    micro = algorithm.micro_batch or max(1, pictures // processes)
    if pictures % (micro * processes):
        raise UserError(
            f"algorithm: expected group_size x prompts_per_step to be a multiple of micro_batch x processes = "
            f"{micro} x {processes}, found {pictures}"
        )
    return pictures // processes


def check_rollout(recipe: GrpoRecipe, pictures: int) -> None:
    """Whether the ``pictures`` per process and step can be drawn as ``algorithm.rollout`` says.

    Raises:
        UserError: CUDA graphs without a GPU, or an engine that would have to start anew for parts of several sizes.
    """
    rollout, group = recipe.algorithm.rollout, recipe.algorithm.group_size
    if rollout.engine == "graph" and not torch.cuda.is_available():
        raise UserError("algorithm.rollout.engine: 'graph' expected a GPU, found none; 'compile' runs on CPUs too")
    if rollout.engine == "loop":
        return
    if pictures % group:
        raise UserError(
            f"algorithm.rollout.engine: '{rollout.engine}' expected whole groups of {group} on each process, found "
            f"{pictures} pictures"
        )
    if rollout.chunk is not None and pictures // group % rollout.chunk:
        raise UserError(
            f"algorithm.rollout.chunk: expected a divisor of the {pictures // group} prompts per process with engine "
            f"'{rollout.engine}', which has one shape, found {rollout.chunk}"
        )


def check_reference(recipe: GrpoRecipe) -> None:
    """
    Raises:
        UserError: a moving reference whose weights, or the policy's, an engine holds in its own way.
    """
    engine = launched_engine()
    if recipe.algorithm.reference is not None and engine is not None:
        raise UserError(f"algorithm.reference: expected processes that hold whole weights (DDP), found {engine}")


def silence_dropout(policy: MentorForConditionalGeneration) -> None:
    """No dropout anywhere: the policy that is optimised has to be the one that was sampled.

    trl's ``disable_dropout`` reaches ``nn.Dropout`` only, not the rates that attention layers and our decoder hold.
    """
    policy.config.dropout = 0.0
    for module in policy.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def some_prompts(recipe: GrpoRecipe, world: World) -> list[Prompt]:
    """Prompts of each of the run's tasks."""
    split, tasks = recipe.prompts.split, recipe.prompts.weights
    return [world.prompt(task, split, MONITOR_SEED, i) for task in tasks for i in range(ANSWERS)]


def true_answers(recipe: GrpoRecipe, world: World) -> list[Example]:
    """What the data itself answers to prompts of each of the run's tasks; nothing where it has prompts alone."""
    split = recipe.prompts.split
    if isinstance(recipe.prompts.data, PromptData):
        return []
    return [world.example(task, split, MONITOR_SEED, i) for task in recipe.prompts.weights for i in range(ANSWERS)]


def check_rewards(composite: Composite, prompts: Sequence[Prompt]) -> None:
    """Refuse rewards that no prompt has the columns for, and tasks that no trained reward applies to.

    Raises:
        RewardError: says which, and why.
    """
    blank, nothing = Image.new("RGB", (1, 1)), torch.empty(len(prompts), 0)
    count = len(prompts)
    batch = reward_batch(Rollout(tuple(prompts), tuple(range(count)), nothing, nothing, [blank] * count), 0)
    composite.check_columns(columns_of(batch))
    composite.check_tasks(batch)


def hacking_alarm(recipe: GrpoRecipe, composite: Composite) -> HackingAlarm:
    """The alarm over the recipe's trained and held-out rewards."""
    entries, specs = composite.entries, composite.specs
    return HackingAlarm(
        trained={name: entries[name].weight * math.copysign(1.0, entries[name].scale) for name in composite.trained},
        held_out={name: 1.0 if specs[name].higher_is_better else -1.0 for name in composite.monitors},
        window=recipe.monitoring.window,
        significance=recipe.monitoring.significance,
    )
