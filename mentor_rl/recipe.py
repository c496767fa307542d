"""Recipes: one YAML file per run, strict, with ``key=value`` overrides.

    kind: tokenizer | sft | scorer | grpo | evaluate (evaluate/recipes.py) | ablate (ablation/recipe.py)

Paths: ``run`` is relative to the current folder. A relative *input* path is looked up beside the recipe first, then in
the current folder; the error names both when it is in neither. Given as an override it is looked up in the current
folder first. Inputs are the fields of type InputPath, and of a reward its ``use: file.py:Class`` and ``checkpoint``.

Free of torch: the command line reads recipes before it decides what to import.
"""

from __future__ import annotations

from typing import Literal, get_args

from mentor_rewards.contract import RewardEntry
from pydantic import Field, model_validator

from mentor_base.errors import nearest
from mentor_base.settings import (
    AdamW,
    AnyPrompts,
    Checkpoints,
    EmojiData,
    InputPath,
    Optimisation,
    PolicyModel,
    Positive,
    Probability,
    Section,
    Split,
    Stage,
    StageOptimisation,
    Task,
    TokenizerLosses,
    TokenizerModel,
    Tracker,
    TrainedParts,
    Validation,
)
from mentor_rl.ablation.recipe import AblateRecipe
from mentor_rl.algorithm import GrpoAlgorithm
from mentor_rl.evaluate.recipes import EvaluateRecipe
from mentor_rl.recipe_common import Common


class TokenizerRecipe(Common):
    """Train a VQ tokenizer."""

    kind: Literal["tokenizer"]
    model: TokenizerModel
    losses: TokenizerLosses = TokenizerLosses()
    data: EmojiData = EmojiData()
    optimisation: Optimisation
    checkpoints: Checkpoints
    validate_every: int = Field(500, gt=0)


class SftRecipe(Common):
    """One supervised stage. Starts from ``init`` (a checkpoint or run folder), or builds ``model`` on ``tokenizer``."""

    kind: Literal["sft"]
    init: InputPath | None = Field(None, description="policy to start from")
    tokenizer: InputPath | None = Field(None, description="VQ tokenizer of a policy built from scratch")
    model: PolicyModel | None = None
    stage: Stage
    optimisation: StageOptimisation
    validation: Validation
    checkpoints: Checkpoints
    report_to: tuple[Tracker, ...] = Field((), description="trackers beside the run folder; see trackers.py")

    @model_validator(mode="after")
    def _one_start(self) -> SftRecipe:
        if (self.init is None) == (self.model is None):
            raise ValueError("give either init (a policy to start from) or model (with tokenizer), not both")
        if self.model is not None and self.tokenizer is None:
            raise ValueError("model needs tokenizer: the VQ tokenizer whose codes the policy writes")
        return self

    @model_validator(mode="after")
    def _epochs_end(self) -> SftRecipe:
        if self.optimisation.epochs is not None and isinstance(self.stage.mixture.data, EmojiData):
            raise ValueError("optimisation.epochs: the emoji world is drawn without end; give optimisation.steps")
        return self


class Tokenized(Section):
    """Training pictures that went through a tokenizer, as all pictures did that a policy writes."""

    tokenizer: InputPath = Field(description="VQ tokenizer")
    share: float = Field(0.5, gt=0, le=1, description="of the training pictures")


class ScorerRecipe(Common):
    """Train a small scorer of the emoji world: a CLIP, a classifier, or EmojiBench's evaluator."""

    kind: Literal["scorer"]
    scorer: Literal["clip", "style", "subject", "evaluator"]
    data: EmojiData = EmojiData()
    optimisation: Optimisation
    augment: Literal["light", "strong"] = "light"
    tokenized: Tokenized | None = None
    validate_every: int = Field(500, gt=0)


class Prompts(Section):
    """The prompts that GRPO rolls out, drawn in a fixed order; with ``weights`` over tasks."""

    data: AnyPrompts = EmojiData()
    weights: dict[Task, Positive] = Field(default={"subject": 1.0})
    split: Split = "train"


class GroupsShown(Section):
    """Groups of training pictures kept as a table, with every reward and the advantage; see monitors/tables.py."""

    groups: int = Field(2, gt=0)
    every: int = Field(25, gt=0, description="optimizer steps between two tables")


class Best(Section):
    """Which metric of the fixed prompts chooses the best policy; see monitors/best.py."""

    metric: str = Field("eval/reward", description="eval/reward, or eval/<name of a reward>")
    mode: Literal["max", "min"] = "max"


class Monitoring(Section):
    """Fixed prompts that are drawn and scored while training, from step 0 on."""

    every: int = Field(25, gt=0)
    prompts: int = Field(16, gt=0)
    split: Split = "unseen_subjects"
    window: int = Field(50, gt=2, description="steps over which trained and held-out rewards are compared")
    significance: float = Field(
        1e-3, gt=0.0, lt=0.5, description="of each of the two trends that make an alarm; see monitors/hacking.py"
    )
    table: GroupsShown | None = GroupsShown()
    best: Best | None = Field(None, description="keep the best policy in RUN/best; default: the last one only")


class GrpoRecipe(Common):
    """GRPO on a policy under a composite of rewards."""

    kind: Literal["grpo"]
    policy: InputPath = Field(description="checkpoint or run folder; the frozen reference is a second copy")
    prompts: Prompts
    train: TrainedParts = Field(default=TrainedParts(connector=False), description="default: the decoder alone")
    algorithm: GrpoAlgorithm
    optimisation: AdamW
    rewards: dict[str, RewardEntry] = Field(min_length=1)
    failure_rate: Probability = Field(0.25, description="share of missing scores of one reward that stops the run")
    monitoring: Monitoring = Monitoring()
    checkpoints: Checkpoints
    report_to: tuple[Tracker, ...] = Field((), description="trackers beside the run folder; see trackers.py")

    @model_validator(mode="after")
    def _rewards_have_metrics_of_their_own(self) -> GrpoRecipe:
        for name in self.rewards:
            if name == "reward" or not name or "/" in name:
                raise ValueError(
                    f"rewards.{name}: expected a name without '/' other than 'reward', which is the weighted sum in "
                    "the metrics"
                )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> GrpoRecipe:
        if self.monitoring.best is not None:
            known = ["eval/reward", *(f"eval/{name}" for name in self.rewards)]
            if self.monitoring.best.metric not in known:
                found = self.monitoring.best.metric
                raise ValueError(f"monitoring.best.metric: unknown '{found}'; {nearest(found, known)}")
        return self

    @model_validator(mode="after")
    def _tasks_meet(self) -> GrpoRecipe:
        """Every reward has a task to score, every task a trained reward that scores it."""
        for name, entry in self.rewards.items():
            for task in entry.tasks or ():
                if task not in get_args(Task):
                    raise ValueError(f"rewards.{name}.tasks: unknown task '{task}'; {nearest(task, get_args(Task))}")
            if entry.tasks is not None and not set(entry.tasks) & self.prompts.weights.keys():
                raise ValueError(
                    f"rewards.{name}.tasks: expected a task of prompts.weights ({', '.join(self.prompts.weights)}), "
                    f"found {', '.join(entry.tasks)}: the reward would score nothing"
                )
        trained = [entry for entry in self.rewards.values() if entry.role == "train"]
        for task in self.prompts.weights:
            if trained and not any(entry.tasks is None or task in entry.tasks for entry in trained):
                raise ValueError(
                    f"prompts.weights.{task}: expected a trained reward whose tasks name it, found none: "
                    "its pictures would teach nothing"
                )
        return self


Recipe = TokenizerRecipe | SftRecipe | ScorerRecipe | GrpoRecipe | EvaluateRecipe | AblateRecipe
