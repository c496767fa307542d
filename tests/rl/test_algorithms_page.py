"""recipes/ALGORITHMS.md: names every setting with its default, says truly what is tested, and what coincides."""

import re
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import pytest
import torch
import yaml
from pydantic import BaseModel
from test_objective_trl import LOSSES, OPTIONS, L, N

from mentor_rl.algorithm import GrpoAlgorithm, Loss
from mentor_rl.objective import grpo_loss

PAGE = (Path(__file__).parents[2] / "recipes" / "ALGORITHMS.md").read_text(encoding="utf-8")
IN_WORDS = {"epsilon_high": "epsilon", "reference.every": "frozen", "sampler_dtype": "as the update"}
IN_WORDS |= {"importance.cap": "off", "micro_batch": "whole step", "rollout.chunk": "whole step", "delta": "none"}


def rows(title: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def settings(section: type[BaseModel] = GrpoAlgorithm, above: str = "") -> dict[str, Any]:
    """Defaults of all settings by their keys."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kinds = get_args(field.annotation) if get_origin(field.annotation) is UnionType else (field.annotation,)
        below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if below:
            found |= settings(below[0], f"{above}{name}.")
        else:
            found[f"{above}{name}"] = field.get_default()
    return found


def in_recipe(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return {"None": "none", "True": "true"}.get(str(value), str(value))


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    found = {cells[0].strip("`"): cells[1] for cells in rows("Settings")}
    expected = {name: IN_WORDS.get(name) or in_recipe(value) for name, value in settings().items()}
    assert found == expected


def test_every_loss_stands_in_the_table() -> None:
    assert {cells[0].strip("`") for cells in rows("Losses")} == set(get_args(Loss))


def test_what_is_said_to_equal_trl_is_compared_with_trl() -> None:
    losses = {values["loss"] for values in LOSSES}
    assert {cells[0].strip("`") for cells in rows("Losses") if "equal to trl" in cells[-1]} == losses
    compared = set()
    for values in [*LOSSES, *OPTIONS]:
        filled = GrpoAlgorithm.model_validate(values)
        for name, value in values.items():
            inner = set(value) if isinstance(value, dict) else set()
            if name == "importance":
                inner = set(type(filled.importance).model_fields)
            compared |= {f"{name}.{key}" for key in inner} or {name}
    compared |= {"entropy.step", "entropy.high"}  # test_trls_entropy_controller_is_the_objectives
    said = {cells[0].strip("`") for cells in rows("Settings") if "equal to trl" in cells[-1]}
    assert said == compared - {"inner_iterations"}


def test_the_example_is_a_recipe() -> None:
    from mentor_rl.contradictions import refuse
    from mentor_rl.recipe import GrpoRecipe

    example = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    algorithm = yaml.safe_load(example[1])["algorithm"]
    rest = {"policy": "p", "prompts": {}, "optimisation": {"lr": 1.0, "steps": 2}, "checkpoints": {"every": 2}}
    rest |= {"kind": "grpo", "run": "r", "rewards": {"brightness": {}}}
    refuse(GrpoRecipe.model_validate({**rest, "algorithm": algorithm}))


@pytest.mark.parametrize("cells", rows("What coincides"), ids=lambda cells: cells[0])
def test_what_is_said_to_coincide_does(cells: list[str]) -> None:
    this, other = (GrpoAlgorithm.model_validate(yaml.safe_load(cell.strip("`"))) for cell in cells[:2])
    factor = {"1": 1.0, "L": float(L)}[cells[2]]
    generator = torch.Generator().manual_seed(0)
    logp_NL = (-2 + torch.randn(N, L, generator=generator, dtype=torch.float64)).requires_grad_()
    drift = {"always": 0.1, "at ratio 1": 0.0}[cells[3]]
    old_NL = logp_NL.detach() + drift * torch.randn(N, L, generator=generator)
    reference_NL = logp_NL.detach() + torch.randn(N, L, generator=generator)
    advantages_N = torch.randn(N, generator=generator, dtype=torch.float64)
    losses = [grpo_loss(logp_NL, old_NL, reference_NL, advantages_N, algorithm).loss for algorithm in (this, other)]
    gradients = [torch.autograd.grad(loss, logp_NL)[0] for loss in losses]
    torch.testing.assert_close(gradients[0], factor * gradients[1])
    if cells[3] == "always":
        torch.testing.assert_close(losses[0], factor * losses[1])
