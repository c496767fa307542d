"""trl's loss is the objective, in value and gradient, for every setting of a recipe, on log-probs that have drifted.

Here trl's own ``_compute_loss`` runs on a trainer that has nothing but its settings; test_grpo_trainer.py runs whole
trainers. Shapes: N samples, L tokens.
"""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from mentor_rl.algorithm import GrpoAlgorithm
from mentor_rl.objective import grpo_loss, importance_weights, next_entropy_coefficient
from mentor_rl.trl_arguments import algorithm_arguments

N, L = 8, 16
LOSSES: list[dict[str, Any]] = [
    {"loss": "grpo"},
    {"loss": "bnpo"},
    {"loss": "dr_grpo"},
    {"loss": "dapo"},
    {"loss": "cispo", "epsilon_high": 1.1},
    {"loss": "sapo"},
    {"loss": "sapo", "sapo": {"temperature_pos": 0.5, "temperature_neg": 2.0}},
    {"loss": "luspo", "ratio": "sequence"},
    {"loss": "vespo"},
    {"loss": "vespo", "vespo": {"k_pos": 1.0, "lambda_pos": 0.5, "k_neg": 2.0, "lambda_neg": 1.0}},
]
OPTIONS: list[dict[str, Any]] = [
    {"epsilon": 0.05, "epsilon_high": 0.1},
    {"epsilon": 0.05, "delta": 1.1},
    {"ratio": "sequence", "epsilon": 0.01},
    {"ratio": "sequence", "loss": "cispo", "epsilon_high": 1.0},
    {"ratio": "sequence", "loss": "sapo"},
    {"beta": 0.0},
    {"beta": 0.5, "kl_bias_correction": False},
    {"beta": 0.5, "ratio": "sequence"},
    {"entropy": {"bonus": 0.1}},
    {"entropy": {"quantile": 0.2}},
    {"entropy": {"quantile": 0.5, "bonus": 0.1}, "loss": "dapo"},
    {"entropy": {"bonus": 0.1, "target": 99.0}},
    {"off_policy_threshold": 0.005, "inner_iterations": 2},
    {"off_policy_threshold": 0.005, "inner_iterations": 2, "loss": "vespo"},
    {"importance": {"cap": 1.5}},
    {"importance": {"cap": 1.05, "level": "token"}, "loss": "cispo", "epsilon_high": 5.0},
    {"importance": {"cap": 1.5}, "loss": "vespo"},
    {"importance": {"cap": 1.05, "level": "token"}, "loss": "vespo"},
    {"importance": {"cap": 1.5}, "loss": "luspo", "ratio": "sequence"},
]


class Facts:
    """Log-probs, entropies and advantages of N drifted pictures."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.logp_NL = -2 + noise(N, L)
        self.old_NL = self.logp_NL + 0.1 * noise(N, L)
        self.sampler_NL = self.logp_NL + 0.1 * noise(N, L)
        self.reference_NL = self.logp_NL + 0.5 * noise(N, L)
        self.entropy_NL = noise(N, L).abs() + 1
        self.advantages_N = noise(N)
        self.advantages_N[0] = 0.0


def trl_loss(algorithm: GrpoAlgorithm, facts: Facts, folder: Path) -> tuple[list[torch.Tensor], GRPOTrainer]:
    """Loss, gradients with respect to log-probs and entropy; the bare trainer."""
    args = GRPOConfig(
        str(folder),
        bf16=False,
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=N,
        max_completion_length=L,
        **algorithm_arguments(algorithm),
    )
    leaves = facts.logp_NL.clone().requires_grad_(), facts.entropy_NL.clone().requires_grad_()
    trainer = bare_trainer(args)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (*leaves, None)
    ones = torch.ones(N, L)
    inputs = {
        "prompt_ids": torch.zeros(N, 2, dtype=torch.long),
        "prompt_mask": torch.ones(N, 2),
        "completion_ids": torch.zeros(N, L, dtype=torch.long),
        "completion_mask": ones,
        "advantages": facts.advantages_N,
        "old_per_token_logps": facts.old_NL,
        "ref_per_token_logps": facts.reference_NL,
        "num_items_in_batch": ones.sum(),
    }
    weights_NX = weights_of(algorithm, facts)
    if weights_NX is not None and algorithm.loss == "vespo":  # as MentorGRPOTrainer._weigh hands them over
        inputs["importance_sampling_ratio"] = weights_NX
    elif weights_NX is not None:
        inputs["advantages"] = facts.advantages_N[:, None] * weights_NX
    loss = trainer._compute_loss(None, inputs)
    return [loss, *torch.autograd.grad(loss, leaves, materialize_grads=True)], trainer


def weights_of(algorithm: GrpoAlgorithm, facts: Facts) -> torch.Tensor | None:
    importance = algorithm.importance
    return importance and importance_weights(facts.old_NL, facts.sampler_NL, importance.cap, importance.level)


def bare_trainer(args: GRPOConfig) -> GRPOTrainer:
    """What ``GRPOTrainer.__init__`` makes of its settings, without model, data or processes."""
    trainer = GRPOTrainer.__new__(GRPOTrainer)
    same = ("beta", "loss_type", "importance_sampling_level", "off_policy_mask_threshold", "top_entropy_quantile")
    for name in (*same, "max_completion_length", "entropy_coef", "use_adaptive_entropy", "use_vllm"):
        setattr(trainer, name, getattr(args, name))
    trainer.args = args
    trainer.epsilon_low = args.epsilon
    trainer.epsilon_high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    trainer.vllm_importance_sampling_correction = args.vllm_importance_sampling_correction
    trainer.aux_loss_enabled = False
    trainer.current_gradient_accumulation_steps = 1
    trainer.model = SimpleNamespace(training=True)
    trainer._metrics = {"train": defaultdict(list)}
    trainer._entropy_bonus_enabled = args.entropy_coef != 0.0 or args.use_adaptive_entropy
    trainer._last_world_entropy, trainer._entropy_window_stats = -1.0, None  # a first step below any target
    trainer.accelerator = SimpleNamespace(
        num_processes=1,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, dim, pad_index: x,
    )
    return trainer


def our_loss(algorithm: GrpoAlgorithm, facts: Facts) -> list[torch.Tensor]:
    leaves = facts.logp_NL.clone().requires_grad_(), facts.entropy_NL.clone().requires_grad_()
    loss = grpo_loss(
        leaves[0],
        facts.old_NL,
        facts.reference_NL,
        facts.advantages_N,
        algorithm,
        leaves[1],
        weights_of(algorithm, facts),
    ).loss
    return [loss, *torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)]


@pytest.mark.parametrize("settings", LOSSES + OPTIONS, ids=str)
def test_trls_loss_is_the_objective(settings, tmp_path) -> None:
    algorithm = GrpoAlgorithm.model_validate({"beta": 0.02, **settings})
    for seed in range(3):
        theirs, _ = trl_loss(algorithm, Facts(seed), tmp_path)
        for a, b in zip(theirs, our_loss(algorithm, Facts(seed)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_every_option_says_something(settings, tmp_path) -> None:
    """Without it the loss is another one, so that the test above could fail."""
    algorithm = GrpoAlgorithm.model_validate({"beta": 0.02, **settings})
    kept = {key: value for key, value in settings.items() if key in ("loss", "inner_iterations", "epsilon_high")}
    if settings.get("loss") == "luspo":
        kept["ratio"] = "sequence"
    plain = GrpoAlgorithm.model_validate({"beta": 0.02, **kept})
    if plain != algorithm:
        a, b = our_loss(algorithm, Facts()), our_loss(plain, Facts())
        assert any((x - y).abs().max() > 1e-5 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("mean_entropy", [0.5, 1.5])
def test_trls_entropy_controller_is_the_objectives(mean_entropy, tmp_path) -> None:
    algorithm = GrpoAlgorithm.model_validate({"entropy": {"bonus": 0.5, "target": 1.0, "step": 0.1, "high": 0.55}})
    facts = Facts()
    facts.entropy_NL = torch.full((N, L), mean_entropy)
    _, trainer = trl_loss(algorithm, facts, tmp_path)
    assert trainer.entropy_coef == pytest.approx(next_entropy_coefficient(0.5, mean_entropy, algorithm.entropy))
