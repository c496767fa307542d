"""Recipes of ``kind: ablate``. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mentor_base.errors import nearest
from mentor_base.settings import InputPath, Positive, Section
from mentor_rl.evaluate.published import published_tables
from mentor_rl.recipe_common import Common


class AblationStep(Section):
    """A recipe that every arm runs, with changes that all arms share."""

    recipe: InputPath
    overrides: dict[str, Any] = Field({}, description="dotted key -> value, as on the command line")
    seconds: Positive | None = Field(None, description="of one run, for --dry-run, until one has been timed here")


class Axis(Section):
    """Arms made from a mapping of a recipe, or from a grid of values; see mentor_rl/ablation/arms.py."""

    leave_out: str | None = Field(None, description="mapping, as step.key: an arm without each of its entries")
    only_one: str | None = Field(None, description="mapping, as step.key: an arm with each of its entries alone")
    names: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="entries of the mapping that are taken; default: all"
    )
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] | None = Field(
        None, min_length=1, description="step.key -> values: an arm for each combination"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Axis:
        given = [name for name in ("leave_out", "only_one", "grid") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of leave_out, only_one and grid, found {' and '.join(given) or 'none'}")
        if self.names is not None and self.grid is not None:
            raise ValueError("names belong to leave_out and only_one, not to grid")
        return self


class AblateRecipe(Common):
    """Arms, each a chain of training runs and a benchmark, with several seeds.

    The stages run in their order, each from the model of the one before; without any, ``policy`` alone is measured and
    ``seeds`` are sampling seeds.
    """

    kind: Literal["ablate"]
    policy: InputPath | None = Field(None, description="what the first stage starts from; default: as its recipe says")
    stages: dict[str, AblationStep] = Field({}, description="name -> recipe of kind sft or grpo, in their order")
    benchmark: AblationStep
    axes: tuple[Axis, ...] = ()
    arms: dict[str, dict[str, Any]] = Field({}, description="name -> {step.key: value}; {stage: null} leaves it out")
    reference: str | None = Field(
        None, description="the arm that the others are compared with; default: 'full', the recipes as they stand"
    )
    untuned: bool = Field(False, description="measure what the first stage starts from, too")
    published: str | None = Field(
        None, description="the paper's table to stand above ours: removals, task_weights or guidance"
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1)

    @model_validator(mode="after")
    def _measures_something(self) -> AblateRecipe:
        if not self.stages and self.policy is None:
            raise ValueError("give stages (what every arm trains), or policy (what every arm measures)")
        if not self.axes and not self.arms:
            raise ValueError("give axes or arms: there is nothing to compare")
        if "benchmark" in self.stages:
            raise ValueError("stages.benchmark: this name belongs to the benchmark; choose another one")
        if self.untuned and not self.stages:
            raise ValueError("untuned: expected stages that tune something, found none")
        if self.published is not None:
            known = [name for name, table in published_tables().items() if table.of_ablation]
            if self.published not in known:
                raise ValueError(f"published: unknown table '{self.published}'; {nearest(self.published, known)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected different ones, found {list(self.seeds)}")
        return self
