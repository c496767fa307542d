"""Our trainer and AR-GRPO's way of working in turns: one process, the same weights at the start, the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mentor_rewards.composite import Composite
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mentor_base.build import build_policy
from mentor_base.checkpoint import load_policy, save_policy
from mentor_base.config import SIZES, MentorConfig
from mentor_base.data.mixture import world_of
from mentor_base.errors import UserError, nearest
from mentor_base.interrupt import InterruptGuard
from mentor_base.runlog import RunFolder
from mentor_base.settings import PolicyModel
from mentor_base.vq import VQConfig, VQModel
from mentor_rl.bench.ar_grpo_step import ArGrpoFound, ArGrpoStep
from mentor_rl.bench.decoder_policy import PLAIN, side_of
from mentor_rl.bench.machine import PeakMemory
from mentor_rl.grpo_run import build_trainer, quiet_libraries, run_trainer
from mentor_rl.recipe import GrpoRecipe
from mentor_rl.rollout import PromptStore
from mentor_rl.trl_arguments import grpo_arguments

DECODER = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
PATCH = 8  # pixels along a side of a patch of the reference picture
TEXT_SLOTS = 124
SMALL_VQ = {"stem_patch": 8, "channels": 32, "multipliers": (1,), "residual_blocks": 1, "latent_channels": 16}
CORPUS = ["this red fox in a rounded cartoon style on a blue background", "two green circles on the left"]


def write_random_policy(size: str, tokens: int, reference_slots: int, folder: Path) -> None:
    """A random decoder of a size, so many image tokens and prefix slots of a reference picture, and the smallest parts
    around it.

    Raises:
        UserError: an unknown size, or tokens or slots that are no square.
    """
    if size not in SIZES:
        raise UserError(f"--size: unknown size '{size}'; {nearest(size, SIZES)}")
    side, patches = side_of("--tokens", tokens), side_of("--reference-slots", reference_slots)
    torch.manual_seed(0)
    codes = MentorConfig.of_size(size).vocab_size
    vq = VQModel(
        VQConfig(image_size=8 * side, codebook_size=codes, normalisation="none", attention=False, **SMALL_VQ)
    ).eval()
    nn.init.normal_(vq.codebook, std=1.0)
    decoder = {name: SIZES[size][name] for name in DECODER}
    tower = {"vision_tower": "clip", "clip_config.image_size": PATCH * patches, "clip_config.patch_size": PATCH}
    options = {**decoder, **PLAIN, **tower, "context_length": reference_slots + TEXT_SLOTS}
    model, processor = build_policy(PolicyModel(size="tiny", options=options), vq, CORPUS)
    nn.init.normal_(model.decoder.head.weight, std=decoder["hidden_size"] ** -0.5)  # a new head is zero
    save_policy(model, processor, folder)


class Turns(TrainerCallback):
    """After each step of our trainer, one of the other's on the same prompts; peaks of memory of both.

    Attributes:
        found: what the other's steps came to.
        ours, theirs: largest growth of memory in a step, bytes.
    """

    def __init__(self, other: ArGrpoStep, store: PromptStore, device: torch.device) -> None:
        self.other, self.store, self.device = other, store, device
        self.found: list[ArGrpoFound] = []
        self.ours = self.theirs = 0
        self._peak = PeakMemory(device)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._peak = PeakMemory(self.device)  # gives memory back, which takes a while: never inside a timed step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.ours = max(self.ours, self._peak.grown())
        algorithm, step = self.other.recipe.algorithm, state.global_step - 1
        first = step * algorithm.prompts_per_step
        uids = [first + row // algorithm.group_size for row in range(algorithm.prompts_per_step * algorithm.group_size)]
        peak = PeakMemory(self.device)
        self.found.append(self.other.take([self.store[uid] for uid in uids], uids, step))
        self.theirs = max(self.theirs, peak.grown())
        self._peak = PeakMemory(self.device)


def run_in_turns(recipe: GrpoRecipe, run: RunFolder, padded_to: int | None = None) -> Turns:
    """Train by the recipe in ``run``, in turns with AR-GRPO's way, whose prompts have ``padded_to`` slots."""
    algorithm = recipe.algorithm
    if algorithm.guidance.logprob != "conditional" and algorithm.guidance.scale != 1.0:
        raise UserError(
            "--against ar_grpo: expected algorithm.guidance.logprob=conditional, which is what AR-GRPO optimises, "
            "or algorithm.guidance.scale=1; found guided log-probs, twice the work"
        )
    if algorithm.guidance.constant is None or algorithm.inner_iterations > 1:
        raise UserError(
            "--against ar_grpo: expected one guidance scale for all prompts and one update a rollout "
            "(algorithm.inner_iterations=1), which is all that the other side does"
        )
    quiet_libraries()
    policy, processor = load_policy(recipe.policy)
    args = grpo_arguments(recipe, run, policy.config.image_tokens, algorithm.group_size * algorithm.prompts_per_step)
    with Composite(recipe.rewards, recipe.failure_rate) as composite, InterruptGuard() as guard:
        world = world_of(recipe.prompts.data, run.broken_file)
        trainer = build_trainer(recipe, run, args, policy, processor, composite, world, guard)
        pair = load_policy(recipe.policy)[0], load_policy(recipe.policy)[0]
        other = ArGrpoStep(*pair, processor, composite, recipe, padded_to)
        store = PromptStore(trainer.store.prompts, processor, frozen_encoder=True)
        turns = Turns(other, store, trainer.accelerator.device)
        trainer.add_callback(turns)
        run_trainer(trainer, run)
    return turns
