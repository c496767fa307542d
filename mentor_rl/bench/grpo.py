"""What a step of GRPO costs and where: the real trainer on a recipe, its own log read afterwards."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mentor_base.checkpoint import policy_config
from mentor_base.config import MentorConfig
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.bench.grpo_against import Turns, run_in_turns, write_random_policy
from mentor_rl.bench.machine import PeakMemory, Spread
from mentor_rl.recipe import GrpoRecipe
from mentor_rl.recipe_files import load_recipe

SECONDS = "seconds/"


@dataclass(frozen=True)
class GrpoSettings:
    """Attributes:
    size: of the recipe's policy; with ``tokens``, of a random one that takes its place.
    reference_slots: prefix slots of a reference picture of that random policy; None: 100.
    against: "ar_grpo", or nothing to compare with.
    padded_to: prefix slots of a prompt in that other way; None: as many as the longest of a step has.
    overrides: of the recipe.
    """

    size: str
    recipe: str
    steps: int
    overrides: list[str]
    tokens: int | None = None
    reference_slots: int | None = None
    against: str | None = None
    padded_to: int | None = None

    def check(self) -> None:
        """Raises: UserError, for an option without the one that it belongs to."""
        if self.reference_slots is not None and self.tokens is None:
            raise UserError("--reference-slots: expected --tokens beside it: it is about a random policy")
        if self.padded_to is not None and self.against is None:
            raise UserError("--padded-to: expected --against ar_grpo beside it: it is about that way of working")


def bench_grpo(settings: GrpoSettings) -> dict[str, Any]:
    """Train ``steps`` + 1 steps in a temporary folder; the first one, which warms up, is left out."""
    from mentor_rl.grpo_run import train_grpo

    with tempfile.TemporaryDirectory() as folder:
        silent = [f"run={folder}/run", f"optimisation.steps={settings.steps + 1}", "monitoring.every=1000000"]
        if settings.tokens is not None:
            write_random_policy(
                settings.size, settings.tokens, settings.reference_slots or 100, Path(folder) / "policy"
            )
            silent.append(f"policy={folder}/policy")
        recipe = load_recipe(Path(settings.recipe), [*settings.overrides, *silent, "checkpoints.every=1000000"])
        if not isinstance(recipe, GrpoRecipe):
            raise UserError(f"{settings.recipe}: kind: expected grpo, found '{recipe.kind}'")
        policy = policy_config(recipe.policy)
        if settings.tokens is None:
            _check_size(policy, settings.size)
        run = RunFolder.open(recipe.run, recipe.model_dump(mode="json"))
        pictures = recipe.algorithm.group_size * recipe.algorithm.prompts_per_step
        shape = {"pictures": pictures, "reference_slots": policy.picture_slots, "tokens": policy.image_tokens}
        if settings.against is not None:
            turns = run_in_turns(recipe, run, settings.padded_to)
            return {**shape, **compared(_steps(run)[1:], turns, pictures)}
        peak = PeakMemory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        train_grpo(recipe, run)
        grown = peak.grown()
        return {**shape, "peak_bytes": grown, **cost_split(_steps(run)[1:], pictures)}


def compared(lines: list[dict[str, Any]], turns: Turns, pictures: int) -> dict[str, Any]:
    """The numbers of both, and ratios of theirs to ours; ``lines`` and ``turns`` without and with the first step."""
    theirs = [{f"{SECONDS}{name}": value for name, value in found.seconds.items()} for found in turns.found[1:]]
    ratios = [step_seconds(other) / step_seconds(mine) for mine, other in zip(lines, theirs, strict=True)]
    return {
        "peak_bytes": turns.ours,
        **cost_split(lines, pictures),
        "against": {"peak_bytes": turns.theirs, **cost_split(theirs, pictures)},
        "ratio": Spread.of(ratios).as_json(),
        "peak_ratio": turns.theirs / turns.ours,
    }


def step_seconds(line: dict[str, Any]) -> float:
    """Of all phases."""
    return float(sum(value for key, value in line.items() if key.startswith(SECONDS)))


def _steps(run: RunFolder) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if "seconds/update" in line]


def cost_split(lines: list[dict[str, Any]], pictures: int) -> dict[str, Any]:
    """Means by phase, and the spread of whole steps, from lines of metrics."""
    phases = sorted({key for line in lines for key in line if key.startswith(SECONDS)})
    means = {key.removeprefix(SECONDS): sum(line.get(key, 0.0) for line in lines) / len(lines) for key in phases}
    seconds = Spread.of([step_seconds(line) for line in lines])
    return {"seconds": seconds.as_json(), "phases": means, "pictures_per_s": pictures / seconds.median}


def _check_size(policy: MentorConfig, size: str) -> None:
    if policy.size != size:
        raise UserError(
            f"--size: expected the size of the recipe's policy, '{policy.size}', found '{size}'; "
            "a random policy of that size: --tokens; another one: policy=FOLDER after the options"
        )
