"""The section ``algorithm`` of a GRPO recipe: what is optimised, and how pictures are drawn for it.

objective.py states the formulas of these settings, contradictions.py says which of them do not go together, and
recipes/ALGORITHMS.md lists them with their papers. Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from mentor_base.settings import Positive, Section

Loss = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
Level = Literal["token", "sequence"]


class Guidance(Section):
    """With which scale the sampler guides, and which log-prob is optimised then (house rule 1)."""

    scale: float | tuple[float, float] = Field(
        1.0, description="one for all prompts, or [low, high]: drawn uniformly for each prompt"
    )
    logprob: Literal["guided", "conditional"] = "guided"

    @property
    def constant(self) -> float | None:
        """The scale of all prompts; None when each has its own."""
        return None if isinstance(self.scale, tuple) else self.scale

    @property
    def largest(self) -> float:
        """The largest scale of any prompt."""
        return max(self.scale) if isinstance(self.scale, tuple) else self.scale

    @property
    def guided(self) -> bool:
        """Whether the sampler needs the unconditional half."""
        return self.scale != 1.0


class Sapo(Section):
    """How sharply ``loss: sapo`` closes its gate, by the sign of the advantage; defaults of arXiv 2511.20347."""

    temperature_pos: Positive = 1.0
    temperature_neg: Positive = 1.05


class Vespo(Section):
    """Power and decay of the weights of ``loss: vespo``, by the sign of the advantage; trl's defaults."""

    k_pos: Positive = 2.0
    lambda_pos: Positive = 3.0
    k_neg: Positive = 3.0
    lambda_neg: Positive = 2.0


class MovingReference(Section):
    """A reference that follows the policy: reference = (1 - mix) reference + mix policy (TR-DPO, arXiv 2404.09656)."""

    every: int = Field(gt=0, description="optimizer steps between two moves")
    mix: float = Field(0.6, gt=0.0, le=1.0, description="1: a copy of the policy")


class Entropy(Section):
    """A bonus for the policy's entropy, and the choice of uncertain tokens.

    With ``target`` the weight of the bonus follows the entropy (Skywork-OR1, arXiv 2505.22312): up by ``step`` after a
    step whose mean entropy was at most the target, down otherwise, between ``low`` and ``high``; it acts only while
    the entropy is at most the target.
    """

    bonus: float = Field(0.0, ge=0.0, description="weight of the mean entropy; with target: of the first step")
    target: float | None = Field(None, gt=0.0, description="nats per token")
    step: Positive = 0.005
    low: float = Field(0.0, ge=0.0)
    high: Positive = 1.0
    quantile: float = Field(
        1.0, gt=0.0, le=1.0, description="share of tokens, the most uncertain ones, that the surrogate is taken over"
    )

    @property
    def active(self) -> bool:
        """Whether the loss has a bonus, whose gradient then goes through the entropy."""
        return self.bonus > 0.0 or self.target is not None


class Importance(Section):
    """Truncated importance weights for a sampler whose numbers differ from the trainer's; see objective.py."""

    cap: float = Field(2.0, ge=1.0, description="largest weight")
    level: Level = "sequence"


class Rollouts(Section):
    """How a step's pictures are drawn. None of it changes what is drawn."""

    engine: Literal["loop", "compile", "graph"] = Field(
        "loop", description="plain loop, torch.compile (a C++ compiler on a CPU), or CUDA graphs (a GPU)"
    )
    chunk: int | None = Field(
        None,
        gt=0,
        description="prompts drawn at a time, while the pictures of those before are scored: pays where rewards run on "
        "another device or a server; default: all of a step",
    )


class GrpoAlgorithm(Section):
    """The objective; names as in trl's GRPOConfig where it has one.

    Attributes:
        RULED_OUT: settings of trl that a recipe does not have, and why.
    """

    RULED_OUT: ClassVar[Mapping[str, str]] = {
        "mask_truncated_completions": "pictures have no end token: every sample would count as truncated",
        "use_vllm": "vLLM does not know this model; rollouts come from mentor_base.generate",
        "use_liger_kernel": "its kernels replace the forward pass that the log-prob seam relies on",
        "use_transformers_continuous_batching": "rollouts come from mentor_base.generate",
        "cast_lm_head_to_fp32": "there is no lm_head; logits are float32 already",
        "top_k": "a token outside the top k would have log-prob -inf",
        "top_p": "a token outside the nucleus would have log-prob -inf",
        "min_p": "a token below it would have log-prob -inf",
        "repetition_penalty": "neighbouring patches repeat tokens by right",
        "sync_ref_model": "it would move the tokenizer that both share; algorithm.reference moves what trains",
        "shuffle_dataset": "the order of the prompts is fixed, so that a resumed run goes on exactly",
        "remove_unused_columns": "the uid column carries the conditioning",
        "max_completion_length": "pictures all have the same number of tokens, which the policy says",
    }

    group_size: int = Field(8, gt=1)
    prompts_per_step: int = Field(4, gt=0, description="over all processes")
    inner_iterations: int = Field(1, gt=0, description="optimizer steps on each rollout")
    loss: Loss = "grpo"
    ratio: Level = "token"
    epsilon: float = Field(0.2, gt=0.0, description="ratios are clipped below 1 - epsilon")
    epsilon_high: float | None = Field(
        None, gt=0.0, description="and above 1 + epsilon_high; default: epsilon. cispo: above epsilon_high itself"
    )
    delta: float | None = Field(None, gt=0.0, description="upper bound of the unclipped ratio too (two-sided clip)")
    sapo: Sapo | None = None
    vespo: Vespo | None = None
    off_policy_threshold: float | None = Field(
        None, gt=0.0, description="sequences to be discouraged are left out when they drifted by more nats per token"
    )
    beta: float = Field(0.02, ge=0.0, description="weight of the KL to the reference")
    kl_bias_correction: bool = Field(True, description="the ratio in front of the KL; see objective.py")
    reference: MovingReference | None = Field(None, description="default: frozen")
    entropy: Entropy = Entropy()
    aggregation: Literal["normalize_then_sum", "sum_then_normalize"] = "normalize_then_sum"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    temperature: Positive = 1.0
    guidance: Guidance = Guidance()
    sampler_dtype: Literal["bfloat16"] | None = Field(
        None, description="of rollouts, under autocast; default: as the training pass"
    )
    importance: Importance | None = Field(None, description="default: the sampler's log-probs count as the trainer's")
    micro_batch: int | None = Field(None, gt=0, description="pictures per update pass and process")
    rollout: Rollouts = Rollouts()
