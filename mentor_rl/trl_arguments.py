"""trl's GRPOConfig from a recipe, and the settings of it that pictures rule out."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from trl import GRPOConfig

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_base.trainer_arguments import one_device, shared_arguments
from mentor_rl.algorithm import GrpoAlgorithm, Sapo, Vespo
from mentor_rl.recipe import GrpoRecipe

__all__ = ["FORCED", "GRPOConfig", "check_arguments", "grpo_arguments"]

# GRPOConfig fields that have to have one value here, and why.
FORCED: dict[str, tuple[Any, str]] = {
    name: (value, GrpoAlgorithm.RULED_OUT[name])
    for name, value in {
        "mask_truncated_completions": False,
        "use_vllm": False,
        "use_liger_kernel": False,
        "use_transformers_continuous_batching": False,
        "cast_lm_head_to_fp32": False,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "sync_ref_model": False,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
    }.items()
}


def grpo_arguments(recipe: GrpoRecipe, run: RunFolder, image_tokens: int, local: int) -> GRPOConfig:
    """trl's arguments. A generation batch is the ``local`` pictures per process of one optimizer step; ``micro_batch``
    splits it.
    """
    algorithm, optimisation = recipe.algorithm, recipe.optimisation
    micro = algorithm.micro_batch or local
    forced = {name: value for name, (value, _) in FORCED.items() if name in GRPOConfig.__dataclass_fields__}
    return one_device(
        GRPOConfig(
            **shared_arguments(optimisation, recipe.checkpoints, recipe.seed, run) | forced,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=local // micro,
            steps_per_generation=local // micro,
            max_completion_length=image_tokens,
            reward_weights=[entry.weight for entry in recipe.rewards.values() if entry.role == "train"],
            **algorithm_arguments(algorithm),
            disable_dropout=True,
            logging_steps=1,
            ddp_broadcast_buffers=False,
        )
    )


def algorithm_arguments(algorithm: GrpoAlgorithm) -> dict[str, Any]:
    """trl's names for the settings that objective.py states.

    The moving reference is not among them: trl would build the reference, and move the tokenizer that both share.

    Raises:
        UserError: another release of trl than those this project is made for.
    """
    entropy, sapo, vespo = algorithm.entropy, algorithm.sapo or Sapo(), algorithm.vespo or Vespo()
    values = {
        "num_iterations": algorithm.inner_iterations,
        "num_generations": algorithm.group_size,
        "temperature": algorithm.temperature,
        "beta": algorithm.beta,
        "use_bias_correction_kl": algorithm.kl_bias_correction,
        "loss_type": algorithm.loss,
        "importance_sampling_level": algorithm.ratio,
        "epsilon": algorithm.epsilon,
        "epsilon_high": algorithm.epsilon_high,
        "delta": algorithm.delta,
        "off_policy_mask_threshold": algorithm.off_policy_threshold,
        "multi_objective_aggregation": algorithm.aggregation,
        "scale_rewards": algorithm.scale_rewards,
        **{f"sapo_{name}": value for name, value in sapo},
        **{f"vespo_{name}": value for name, value in vespo},
        "top_entropy_quantile": entropy.quantile,
        "entropy_coef": entropy.bonus,
        "use_adaptive_entropy": entropy.target is not None,
        "entropy_coef_delta": entropy.step,
        "entropy_coef_min": entropy.low,
        "entropy_coef_max": entropy.high,
    }
    if entropy.target is not None:
        values["entropy_target"] = entropy.target
    for name in sorted(values.keys() - GRPOConfig.__dataclass_fields__.keys()):
        raise UserError(f"trl: expected a release with GRPOConfig.{name}, found {version('trl')}")
    return values


def check_arguments(args: GRPOConfig, image_tokens: int) -> None:
    """Refuse settings of trl that make no sense for pictures, or would silently do something else.

    Raises:
        UserError: names the setting and the reason.
    """
    for name, (value, reason) in FORCED.items():
        if getattr(args, name, value) != value:  # an older trl lacks some
            raise UserError(f"GRPOConfig.{name}: expected {value!r}, found {getattr(args, name)!r}: {reason}")
    if args.max_completion_length != image_tokens:
        raise UserError(
            f"GRPOConfig.max_completion_length: expected the picture's {image_tokens} tokens, "
            f"found {args.max_completion_length}: dr_grpo divides by it"
        )
