"""Settings of a GRPO recipe that contradict each other or make no sense for pictures, each refused with the reason.

``refuse(recipe)`` runs before any weight is read, and before a run folder is made. What needs data or rewards is in
grpo_setup.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mentor_base.errors import UserError
from mentor_base.settings import RowData
from mentor_rl.algorithm import Entropy, GrpoAlgorithm, Loss
from mentor_rl.monitors.hacking import threshold, trend
from mentor_rl.recipe import GrpoRecipe

CLIPPED: tuple[Loss, ...] = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
UNSET = GrpoAlgorithm()


def refuse(recipe: GrpoRecipe) -> None:
    """Refuse a recipe that does not add up.

    Raises:
        UserError: the first contradiction, in one line.
    """
    algorithm = recipe.algorithm
    settings = (_loss(algorithm), _reference(recipe), _entropy(algorithm.entropy), _sampler(recipe))
    for checks in (*settings, _splits(recipe), _run(recipe)):
        for line in checks:
            raise UserError(line)


def _loss(algorithm: GrpoAlgorithm) -> Iterator[str]:
    loss, high = algorithm.loss, algorithm.epsilon_high
    for name in ("sapo", "vespo"):
        if getattr(algorithm, name) is not None and loss != name:
            yield f"algorithm.{name}: expected loss '{name}', whose parameters these are, found loss '{loss}'"
    if loss not in CLIPPED:
        for name in ("epsilon", "delta"):
            if getattr(algorithm, name) != getattr(UNSET, name):
                yield f"algorithm.{name}: expected a loss that clips ({', '.join(CLIPPED)}), found loss '{loss}'"
    if loss in ("sapo", "vespo") and high is not None:
        yield f"algorithm.epsilon_high: expected a loss with an upper bound, found '{loss}', which has a soft gate"
    if loss == "cispo" and (high is None or high < 1.0):
        yield (
            "algorithm.epsilon_high: expected the largest ratio, at least 1, with loss 'cispo' (ScaleRL uses 5), "
            f"found {'none' if high is None else f'{high:g}'}"
        )
    edge = 1 + (algorithm.epsilon if high is None else high)
    if algorithm.delta is not None and algorithm.delta <= edge:
        yield (
            f"algorithm.delta: expected more than 1 + epsilon_high = {edge:g}, found {algorithm.delta:g}: "
            "the two-sided clip would cut where the one-sided one does not"
        )
    if loss == "vespo" and algorithm.ratio == "sequence":
        yield "algorithm.ratio: expected 'token' with loss 'vespo' (it weighs whole sequences itself), found 'sequence'"
    if loss == "luspo" and algorithm.ratio == "token":
        yield "algorithm.ratio: expected 'sequence' with loss 'luspo' (with 'token' it is grpo, longer), found 'token'"
    if algorithm.off_policy_threshold is not None and algorithm.inner_iterations == 1:
        yield (
            "algorithm.off_policy_threshold: expected inner_iterations above 1, found 1: "
            "the policy cannot drift away from a rollout that it sees once"
        )


def _reference(recipe: GrpoRecipe) -> Iterator[str]:
    algorithm = recipe.algorithm
    if algorithm.beta == 0.0 and algorithm.reference is not None:
        yield "algorithm.reference: expected beta above 0, found 0: no reference is loaded that could move"
    if algorithm.beta == 0.0 and not algorithm.kl_bias_correction:
        yield "algorithm.kl_bias_correction: expected beta above 0, found 0: there is no KL to correct"
    if algorithm.reference is not None and recipe.train.lora is not None:
        yield (
            "algorithm.reference: expected a run without train.lora, whose reference is the policy with its adapters "
            "switched off and has no weights of its own to move"
        )


def _entropy(entropy: Entropy) -> Iterator[str]:
    if entropy.target is None:
        for name in ("step", "low", "high"):
            if getattr(entropy, name) != getattr(UNSET.entropy, name):
                yield f"algorithm.entropy.{name}: expected a target, which it serves to reach, found none"
    elif not entropy.low <= entropy.bonus <= entropy.high:
        yield (
            f"algorithm.entropy.bonus: expected between low and high = {entropy.low:g} and {entropy.high:g}, "
            f"found {entropy.bonus:g}"
        )


def _sampler(recipe: GrpoRecipe) -> Iterator[str]:
    algorithm, guidance = recipe.algorithm, recipe.algorithm.guidance
    scales = guidance.scale if isinstance(guidance.scale, tuple) else (guidance.scale,)
    if min(scales) <= 0.0:
        yield (
            f"algorithm.guidance.scale: expected above 0, found {min(scales):g}: "
            "at 0 pictures do not depend on the prompt, below it they avoid it"
        )
    if len(scales) == 2 and scales[0] >= scales[1]:
        yield f"algorithm.guidance.scale: expected [low, high] with low < high, found [{scales[0]:g}, {scales[1]:g}]"
    biased = guidance.logprob == "conditional" and guidance.guided
    if algorithm.importance is not None and biased:
        yield (
            "algorithm.importance: expected guidance.logprob 'guided', found 'conditional': the weights of a picture "
            "between the two distributions are 0 or without bound"
        )
    if algorithm.sampler_dtype is not None and recipe.optimisation.precision == "bf16":
        yield "algorithm.sampler_dtype: expected none with precision 'bf16', whose rollouts are in bfloat16 anyway"
    elif algorithm.sampler_dtype is not None and algorithm.importance is None and not biased:
        yield (
            f"algorithm.importance: expected with sampler_dtype '{algorithm.sampler_dtype}', found none: "
            "the log-probs of rollouts are then not those of the update, and nothing makes up for it"
        )


def _splits(recipe: GrpoRecipe) -> Iterator[str]:
    data = recipe.prompts.data
    if not isinstance(data, RowData):
        return
    known = ("train",) if data.val is None else ("train", "val")
    for key, split in (("prompts.split", recipe.prompts.split), ("monitoring.split", recipe.monitoring.split)):
        if split not in known:
            yield f"{key}: expected a split that prompts.data names ({', '.join(known)}), found '{split}'"


def _run(recipe: GrpoRecipe) -> Iterator[str]:
    algorithm, watched = recipe.algorithm, recipe.monitoring
    pictures = algorithm.group_size * algorithm.prompts_per_step
    if algorithm.micro_batch is not None and pictures % algorithm.micro_batch:
        yield (
            f"algorithm.micro_batch: expected a divisor of group_size x prompts_per_step = {pictures}, "
            f"found {algorithm.micro_batch}"
        )
    if recipe.checkpoints.every % algorithm.inner_iterations:
        yield (
            f"checkpoints.every: expected a multiple of algorithm.inner_iterations = {algorithm.inner_iterations}, "
            f"found {recipe.checkpoints.every}: a state is saved between two rollouts"
        )
    if algorithm.aggregation == "normalize_then_sum" and algorithm.scale_rewards != "group":
        yield (
            f"algorithm.scale_rewards: expected 'group' with aggregation 'normalize_then_sum', which has no say in it; "
            f"found '{algorithm.scale_rewards}'"
        )
    for name, entry in recipe.rewards.items():
        if algorithm.aggregation == "sum_then_normalize" and entry.spread_floor > 0.0:
            yield (
                f"rewards.{name}.spread_floor: expected 0 with aggregation 'sum_then_normalize', which divides by "
                f"the spread of the sum; found {entry.spread_floor:g}"
            )
    if trend(np.arange(watched.window)) <= threshold(watched.significance):
        yield (
            f"monitoring.window: expected more steps for significance {watched.significance:g}, found "
            f"{watched.window}: not even a steady rise would raise an alarm"
        )
    if not recipe.train.parts:
        yield "train: expected at least one part to train, found none"
    if recipe.train.lora is not None and recipe.train.lora.dropout:
        yield (
            "train.lora.dropout: expected 0 (the policy that is optimised has to be the one that was sampled), "
            f"found {recipe.train.lora.dropout:g}"
        )
    if not any(entry.role == "train" for entry in recipe.rewards.values()):
        yield "rewards: expected at least one with role 'train', found monitors only"
