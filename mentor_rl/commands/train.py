"""``mentor train``: from a recipe to the code that runs its kind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mentor_base.batch_split import launched_processes, launched_rank
from mentor_base.errors import UserError
from mentor_base.runlog import MARKER, RunFolder
from mentor_rl.ablation.recipe import AblateRecipe
from mentor_rl.evaluate.recipes import EvaluateRecipe
from mentor_rl.launch import check_launch
from mentor_rl.recipe import GrpoRecipe, Recipe, ScorerRecipe, SftRecipe, TokenizerRecipe
from mentor_rl.recipe_files import load_recipe, resolved
from mentor_rl.recipe_names import check_names

WAIT_SECONDS = 120.0


def train_recipe(path: Path, overrides: Sequence[str], dry_run: bool) -> None:
    """Run the recipe, go on with it, or say that it is done."""
    recipe = load_recipe(path, overrides, need_inputs=not dry_run)
    if isinstance(recipe, (EvaluateRecipe, AblateRecipe)):
        raise UserError(
            f"{path}: kind: expected a kind that trains, found '{recipe.kind}'; use `mentor {recipe.kind} {path}`"
        )
    check_names(recipe, str(path))
    if dry_run:
        print(recipe_text(recipe), end="")
        return
    check_launch(recipe, str(path), launched_processes())
    run = open_run(recipe)
    if run.finished:
        say(f"{run.path}: already finished, the model is in {run.final}")
        return
    if run.metrics_file.exists():
        say(f"{run.path}: going on with this run")
    start_training(recipe, run)
    say(f"{run.path}: finished after {run.seconds:.0f} s, the model is in {run.final}")


def start_training(recipe: Recipe, run: RunFolder) -> None:
    """Hand the recipe's sections to the trainer of its kind, by their names."""
    if isinstance(recipe, GrpoRecipe):
        from mentor_rl.grpo_run import train_grpo

        train_grpo(recipe, run)
        return
    sections: dict[str, Any] = {
        name: getattr(recipe, name) for name in type(recipe).model_fields if name not in ("kind", "run", "about")
    }
    if isinstance(recipe, TokenizerRecipe):
        from mentor_base.tokenizer_training import train_tokenizer

        train_tokenizer(**sections, run=run)
    elif isinstance(recipe, SftRecipe):
        from mentor_base.sft import train_stage

        train_stage(**sections, run=run)
    elif isinstance(recipe, ScorerRecipe):
        from mentor_rl.scorers.training import train_scorer

        train_scorer(**sections, run=run)


def open_run(recipe: Recipe, passing: Sequence[tuple[str, ...]] = ()) -> RunFolder:
    """The recipe's run folder. Of several processes the first makes it, and the others wait for it.

    ``passing``: settings (by their keys) that may change between two calls, since no result depends on them.
    """
    folder = Path(recipe.run)
    if launched_rank() > 0:
        waited_from = time.monotonic()
        while not (folder / MARKER).exists():
            if time.monotonic() - waited_from > WAIT_SECONDS:
                raise UserError(f"{folder}: process 0 has not made this run folder within {WAIT_SECONDS:.0f} s")
            time.sleep(0.05)
    return RunFolder.open(folder, resolved(recipe), partial(_reread, recipe, passing))


def _reread(recipe: Recipe, passing: Sequence[tuple[str, ...]], held: dict[str, Any]) -> dict[str, Any]:
    """A kept recipe with the settings that its edition did not have, at their defaults; itself where it is no such."""
    try:
        again, now = resolved(type(recipe).model_validate(held)), resolved(recipe)
    except ValidationError:
        return held
    for *above, last in passing:
        there, here = again, now
        for key in above:
            there, here = there.get(key, {}), here.get(key, {})
        if last in here:
            there[last] = here[last]
    return again


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True)


def say(line: str) -> None:
    """A line for the user, once even when several processes run."""
    if launched_rank() == 0:
        print(line, flush=True)
