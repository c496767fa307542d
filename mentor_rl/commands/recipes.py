"""``mentor recipes list | show``: what there is to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mentor_base.errors import UserError
from mentor_base.runlog import MARKER

recipes_app = typer.Typer(help="What there is to run.", no_args_is_help=True)


@recipes_app.command("list")
def list_recipes(
    folder: Annotated[Path, typer.Argument(help="Where to look, subfolders included.")] = Path("recipes"),
) -> None:
    """All recipes of a folder, with their kind and purpose."""
    from rich.console import Console
    from rich.table import Table

    from mentor_rl.recipe_files import load_recipe

    files = sorted(recipe_files(folder))
    if not files:
        raise UserError(f"{folder}: expected a folder with recipes (*.yaml), found none; run this in a clone")
    table = Table("recipe", "kind", "about", box=None, header_style="bold")
    for file in files:
        recipe = load_recipe(file, need_inputs=False)
        table.add_row(str(file), recipe.kind, recipe.about)
    Console().print(table)


@recipes_app.command("show")
def show_recipe(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
) -> None:
    """One recipe in full: defaults, overrides and found paths included."""
    from mentor_rl.commands.train import recipe_text
    from mentor_rl.recipe_files import load_recipe

    print(recipe_text(load_recipe(recipe, overrides or [], need_inputs=False)), end="")


def recipe_files(folder: Path) -> list[Path]:
    """The recipes below a folder: YAML files with a key ``kind``, so that launcher configurations may stand beside.

    The resolved recipes that runs and exported checkpoints keep are records of something done, and not among them.
    """
    return [file for file in folder.rglob("*.yaml") if file.name != MARKER and _has_kind(file)]


def _has_kind(file: Path) -> bool:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.startswith("kind:") for line in lines)
