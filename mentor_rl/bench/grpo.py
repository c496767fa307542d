"""What a step of GRPO costs and where: the real trainer on a recipe, its own log read afterwards."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from mentor_base.checkpoint import model_folder
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.bench.machine import PeakMemory, Spread
from mentor_rl.recipe import GrpoRecipe
from mentor_rl.recipe_files import load_recipe

SECONDS = "seconds/"


def bench_grpo(recipe_file: Path, size: str, steps: int, overrides: list[str]) -> dict[str, Any]:
    """Train ``steps`` + 1 steps in a temporary folder; the first one, which warms up, is left out."""
    from mentor_rl.grpo_run import train_grpo

    with tempfile.TemporaryDirectory() as folder:
        silent = [f"run={folder}/run", f"optimisation.steps={steps + 1}", "monitoring.every=1000000"]
        recipe = load_recipe(recipe_file, [*overrides, *silent, "checkpoints.every=1000000"])
        if not isinstance(recipe, GrpoRecipe):
            raise UserError(f"{recipe_file}: kind: expected grpo, found '{recipe.kind}'")
        _check_size(recipe, size)
        run = RunFolder.open(recipe.run, recipe.model_dump(mode="json"))
        peak = PeakMemory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        train_grpo(recipe, run)
        grown = peak.grown()
        lines = [line for line in run.metrics() if "seconds/update" in line]
    pictures = recipe.algorithm.group_size * recipe.algorithm.prompts_per_step
    return {"pictures": pictures, "peak_bytes": grown, **cost_split(lines[1:], pictures)}


def cost_split(lines: list[dict[str, Any]], pictures: int) -> dict[str, Any]:
    """Means by phase, and the spread of whole steps, from lines of metrics."""
    phases = sorted({key for line in lines for key in line if key.startswith(SECONDS)})
    steps = [sum(line[key] for key in phases if key in line) for line in lines]
    means = {key.removeprefix(SECONDS): sum(line.get(key, 0.0) for line in lines) / len(lines) for key in phases}
    seconds = Spread.of(steps)
    return {"seconds": seconds.as_json(), "phases": means, "pictures_per_s": pictures / seconds.median}


def _check_size(recipe: GrpoRecipe, size: str) -> None:
    facts = json.loads((model_folder(recipe.policy) / "config.json").read_text(encoding="utf-8"))
    if facts.get("size") != size:
        raise UserError(
            f"--size: expected the size of the recipe's policy, '{facts.get('size')}', found '{size}'; "
            "another policy: policy=FOLDER after the options"
        )
