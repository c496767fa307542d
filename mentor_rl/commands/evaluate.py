"""``mentor evaluate``: from a benchmark recipe to its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mentor_base.batch_split import launched_rank
from mentor_base.errors import UserError
from mentor_rl.commands.train import open_run, recipe_text, say
from mentor_rl.evaluate.recipes import EmojiBenchRecipe, EvaluateRecipe, PictureRecipe
from mentor_rl.recipe_files import load_recipe

PASSING = (
    *(("incomplete",), ("device",), ("score_batch",)),
    *(("judge", key) for key in ("url", "concurrency", "find_model")),
)


def evaluate_recipe(path: Path, overrides: Sequence[str], dry_run: bool) -> None:
    """Run the benchmark, or show the table of one that has been run."""
    recipe = load_recipe(path, overrides, need_inputs=not dry_run)
    if not isinstance(recipe, EvaluateRecipe):
        verb = "ablate" if recipe.kind == "ablate" else "train"
        raise UserError(f"{path}: kind: expected 'evaluate', found '{recipe.kind}'; use `mentor {verb} {path}`")
    if dry_run:
        print(recipe_text(recipe), end="")
        return
    from rich.console import Console

    from mentor_rl.evaluate.picture_run import build_benchmark, check_policies, run_benchmark
    from mentor_rl.evaluate.result import Result

    written = Path(recipe.run) / "results" / f"{recipe.benchmark}.json"
    result: Result | None
    if written.exists():
        run = open_run(recipe, PASSING)
        say(f"{run.path}: already finished, the result is in {written}")
        result = Result.read(written) if launched_rank() == 0 else None
    elif isinstance(recipe, EmojiBenchRecipe):
        from mentor_rl.evaluate.emojibench_run import evaluate

        check_policies(path for policy in recipe.policies for path in recipe.rows_of(policy).values())
        result = evaluate(recipe, open_run(recipe, PASSING))
    else:
        assert isinstance(recipe, PictureRecipe)
        check_policies(recipe.policies.values())
        benchmark = build_benchmark(recipe)  # a fault in its data shows before there is a run folder
        benchmark.check()  # and so does a judge that would be missed once all pictures are drawn
        result = run_benchmark(recipe, benchmark, open_run(recipe, PASSING))
    if result is None:  # another process than the first: that one shows the result
        return
    Console().print(result.table())
    if isinstance(recipe, EmojiBenchRecipe):
        from mentor_rl.evaluate.emojibench_run import changes_markdown

        print(changes_markdown(result), end="")
