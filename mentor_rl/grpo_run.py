"""A GRPO run from its recipe to its policy: what is loaded, the trainer's parts, the end."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Mapping
from functools import partial

import torch
import transformers
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardError, RewardFailure
from transformers import GenerationConfig

from mentor_base.batch_split import launched_processes
from mentor_base.callbacks import (
    CheckpointCallback,
    Diverged,
    FiniteGradients,
    InterruptCallback,
    ProgressCallback,
    RunLogCallback,
    quieten,
)
from mentor_base.checkpoint import load_policy, policy_config, save_policy
from mentor_base.config import MentorConfig
from mentor_base.data.mixture import PromptList, World, world_of
from mentor_base.decode_graph import DecodeEngine
from mentor_base.engines import of_main_process, whole_state
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.lora import WithoutAdapters, check_adapters, merged_state
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.processor import MentorProcessor
from mentor_base.runlog import RunFolder
from mentor_base.sft import schedule, set_trained_parts, write_policy
from mentor_base.states import take_up
from mentor_base.trackers import check_trackers, tracker_callbacks
from mentor_rl.grpo_callbacks import BetweenRollouts, MonitorCallback
from mentor_rl.grpo_setup import (
    MONITOR_SEED,
    check_reference,
    check_rewards,
    check_rollout,
    hacking_alarm,
    pictures_per_process,
    silence_dropout,
    some_prompts,
    true_answers,
)
from mentor_rl.monitors.best import BestPolicy
from mentor_rl.monitors.copying import copy_thresholds
from mentor_rl.monitors.fixed_prompts import FixedPrompts
from mentor_rl.monitors.rollout_watch import RolloutWatch
from mentor_rl.monitors.tables import GroupTable
from mentor_rl.monitors.trackers import TableWriter
from mentor_rl.recipe import GrpoRecipe
from mentor_rl.rollout import PromptStore
from mentor_rl.scoring import check_parts
from mentor_rl.trainer import MentorGRPOTrainer
from mentor_rl.trl_arguments import GRPOConfig, grpo_arguments

logger = logging.getLogger(__name__)


def train_grpo(recipe: GrpoRecipe, run: RunFolder) -> None:
    """Tune the recipe's policy to the end and write it to ``run.final``; takes up the newest state in ``run``.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, with a state saved.
        RewardFailure: a reward could not score too many pictures; a state is saved.
        Diverged: no finite gradients any more; a state is saved.
        UserError, RewardError: a recipe that does not add up, a checkpoint or reward that cannot be used.
    """
    if run.finished:
        logger.warning("%s: this run is finished; nothing to do", run.path)
        return
    if recipe.optimisation.threads is not None:
        torch.set_num_threads(recipe.optimisation.threads)
    quiet_libraries()
    check_trackers(recipe.report_to)
    local = pictures_per_process(recipe, launched_processes())  # this and what follows: before any weight is read
    check_rollout(recipe, local)
    check_reference(recipe)
    rewards, world = Composite(recipe.rewards, recipe.failure_rate), world_of(recipe.prompts.data, run.broken_file)
    rewards.check_files()
    rewards.check_servers()  # remote rewards say now what they need
    check_rewards(rewards, some_prompts(recipe, world))
    if recipe.algorithm.rollout.chunk is not None:
        check_parts(rewards)
    check_adapters(policy_config(recipe.policy), recipe.train)
    policy, processor = load_policy(recipe.policy)
    held = copy.deepcopy(policy.config), policy.generation_config
    args = grpo_arguments(recipe, run, policy.config.image_tokens, local)  # chooses this process' device: rewards next
    with rewards as composite, InterruptGuard() as guard:
        trainer = build_trainer(recipe, run, args, policy, processor, composite, world, guard)
        if recipe.monitoring.best is not None:
            best = BestPolicy(run, recipe.monitoring.best) if trainer.is_world_process_zero() else None
            trainer.keep_best = partial(keep_best, trainer, processor, best, held)
        run_trainer(trainer, run)
        if trainer.callback(InterruptCallback).stopped:
            raise Interrupted(
                f"{run.path}: stopped at step {trainer.state.global_step} of {trainer.state.max_steps} with its state "
                "saved; the same command goes on from there"
            )
        policy.config, policy.generation_config = held
        finish(trainer, processor, run)


def quiet_libraries() -> None:
    """No loading bars, and no warnings about settings that we cannot choose: trl passes them on."""
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)


def build_trainer(
    recipe: GrpoRecipe,
    run: RunFolder,
    args: GRPOConfig,
    policy: MentorForConditionalGeneration,
    processor: MentorProcessor,
    composite: Composite,
    world: World,
    guard: InterruptGuard,
) -> MentorGRPOTrainer:
    """The trainer of a recipe, ready to train."""
    algorithm, monitoring = recipe.algorithm, recipe.monitoring
    set_trained_parts(policy, recipe.train, recipe.seed)
    silence_dropout(policy)
    frozen_encoder = not (recipe.train.vision or recipe.train.connector or recipe.train.text_encoder)
    reference = reference_of(recipe, policy) if algorithm.beta > 0 else None
    rollouts = math.ceil(recipe.optimisation.steps / algorithm.inner_iterations)
    count = rollouts * algorithm.prompts_per_step
    prompts = PromptList(recipe.prompts.data, recipe.prompts.weights, recipe.prompts.split, recipe.seed, count, world)
    unseen = PromptList(
        recipe.prompts.data, recipe.prompts.weights, monitoring.split, MONITOR_SEED, monitoring.prompts, world
    )
    fixed = [unseen[i] for i in range(monitoring.prompts)]
    answers = true_answers(recipe, world)
    gradients, trackers = FiniteGradients(), tracker_callbacks(recipe.report_to, run)
    show, shown = TableWriter(run, trackers), monitoring.table
    groups = GroupTable(shown.groups, shown.every) if shown is not None else None
    trainer = MentorGRPOTrainer(
        policy=policy,
        reference=reference,
        args=args,
        composite=composite,
        store=PromptStore(prompts, processor, frozen_encoder),
        fixed_store=PromptStore(fixed, processor, frozen_encoder),
        fixed=FixedPrompts(fixed, composite, run, show),
        watched=RolloutWatch(composite, hacking_alarm(recipe, composite), copy_thresholds(answers), groups, show),
        algorithm=algorithm,
        rows=count,
        lr_schedule=partial(schedule, recipe.optimisation),
        callbacks=[
            *trackers,
            MonitorCallback(monitoring.every),
            gradients,
            BetweenRollouts(guard, algorithm.inner_iterations),
            CheckpointCallback(run, recipe.checkpoints.keep),
            RunLogCallback(run, gradients),
            ProgressCallback("grpo"),
        ],
        engine=decode_engine(recipe, policy),
    )
    quieten(trainer)
    return trainer


def decode_engine(recipe: GrpoRecipe, policy: MentorForConditionalGeneration) -> DecodeEngine | None:
    """What runs the sampler's loop. Prefixes of all lengths are given one shape, which is compiled or captured once."""
    way = recipe.algorithm.rollout.engine
    return None if way == "loop" else DecodeEngine(way, slots=policy.config.context_length)


def reference_of(
    recipe: GrpoRecipe, policy: MentorForConditionalGeneration
) -> MentorForConditionalGeneration | WithoutAdapters:
    """The frozen policy that training starts from: a second copy, or this one with its adapters switched off."""
    return load_policy(recipe.policy)[0] if recipe.train.lora is None else WithoutAdapters(policy)


def run_trainer(trainer: MentorGRPOTrainer, run: RunFolder) -> None:
    """Train from the newest state in ``run``, or from the start."""
    state = take_up(run, trainer.is_world_process_zero())
    trainer.callback(MonitorCallback).watch = trainer.watch
    trainer.watched.alarm.recall(run.metrics())
    progress = trainer.callback(ProgressCallback)
    try:
        trainer.train(resume_from_checkpoint=str(state) if state is not None else None)
    except BaseException as error:
        progress.close(error)
        alone = trainer.accelerator.num_processes == 1
        if isinstance(error, RewardFailure | Diverged) or (isinstance(error, RewardError) and alone):
            trainer.save_now()  # these two reach all processes; what a reward raises by itself, only its own
        raise


def keep_best(
    trainer: MentorGRPOTrainer,
    processor: MentorProcessor,
    best: BestPolicy | None,
    held: tuple[MentorConfig, GenerationConfig],
    step: int,
    metrics: Mapping[str, float],
) -> None:
    """Write the policy to RUN/best where it is better than all before.

    Args:
        best: of the main process; None on the others, which hand over their parts of the weights.
        held: the policy's own configs, which trl has changed.
    """
    if not of_main_process(best is not None and best.improves(metrics)):
        return
    policy = trainer.accelerator.unwrap_model(trainer.model)
    state = whole_state(policy) | trainer.tokenizer_state
    if best is not None:
        trls = policy.config, policy.generation_config
        with best.writing(step, metrics) as folder:
            policy.config, policy.generation_config = held
            save_policy(policy, processor, folder, state=merged_state(policy, state))
            policy.config, policy.generation_config = trls


def finish(trainer: MentorGRPOTrainer, processor: MentorProcessor, run: RunFolder) -> None:
    """Write the policy and what its card needs; the main process, once all have handed over their parts."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    state = whole_state(policy) | trainer.tokenizer_state
    if not trainer.is_world_process_zero():
        return
    policy.__dict__.pop("forward", None)  # trl's wrapper around the class's own
    last = [line for line in run.metrics() if "eval/reward" in line]
    write_policy(
        policy,
        processor,
        run,
        state,
        steps=trainer.state.global_step,
        cpu_seconds=trainer.callback(RunLogCallback).cpu_seconds,
        rewards={name: f"{spec.name} {spec.version}" for name, spec in trainer.composite.specs.items()},
        metrics={name: value for line in last[-1:] for name, value in line.items() if name.startswith("eval/")},
    )
