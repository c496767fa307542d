"""``mentor rate export | import``: pictures for people to grade, and how far they agree."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mentor_rl.evaluate.rating import Rating
    from mentor_rl.evaluate.result import Result

rate_app = typer.Typer(help="Human ratings of a benchmark's pictures.", no_args_is_help=True)


@rate_app.command("export")
def export_sheet(
    source: Annotated[Path, typer.Argument(metavar="RUN|RESULT", help="A benchmark's run folder, or a result in it.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("sheet.html"),
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures, over all rows.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Which pictures, and their order.")] = 0,
) -> None:
    """Write one offline HTML form that saves a CSV; send it to each rater."""
    from mentor_rl.evaluate.rating import write_sheet

    print(f"{out}: {write_sheet(source, out, pictures, seed)} pictures")


@rate_app.command("import")
def import_ratings(
    files: Annotated[list[Path], typer.Argument(metavar="CSV...", help="What the raters' sheets saved.")],
    result: Annotated[
        Path | None, typer.Option(help="The benchmark's run folder or result: compares raters with its judge.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the numbers.")] = None,
) -> None:
    """Print Krippendorff's alpha with intervals, and the judge's consistency with the raters."""
    from rich.console import Console

    from mentor_base.runlog import write_atomically
    from mentor_rl.evaluate.rating import AXES, read_ratings
    from mentor_rl.evaluate.result import Result, finite, result_file

    ratings = read_ratings(files)
    judged = Result.read(result_file(result)) if result is not None else None
    facts = {axis: _axis(ratings, axis, judged) for axis in AXES if any(rating.axis == axis for rating in ratings)}
    Console().print(_table(facts))
    if judged is not None:
        print(f"judge{' (a stand-in)' * judged.stand_in}: {judged.judge}")
    if judged is None or not judged.stand_in:
        print(_paper())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(finite(facts), indent=1) + "\n")


def _paper() -> str:
    """The paper's agreement, for orientation."""
    from mentor_rl.evaluate.published import published_tables

    table = published_tables()["human_agreement"]
    shown = "; ".join(
        f"{axis} alpha {alpha}, judge = majority {match:.0%}" for axis, (alpha, match) in table.rows.items()
    )
    return f"MENTOR, other pictures and raters: {shown}. {table.footnote}"


def _axis(ratings: list[Rating], axis: str, judged: Result | None) -> dict[str, Any]:
    from dataclasses import asdict

    from mentor_rl.evaluate.agreement import LEVELS, consistency, krippendorff
    from mentor_rl.evaluate.rating import by_picture, judge_scores, ratings_matrix

    matrix = ratings_matrix(ratings, axis)
    facts: dict[str, Any] = {"pictures": matrix.shape[0], "raters": matrix.shape[1]}
    facts["alpha"] = {level: asdict(krippendorff(matrix, level)) for level in LEVELS}
    if judged is not None:
        facts["consistency"] = asdict(consistency(by_picture(ratings, axis), judge_scores(judged, axis)))
    return facts


def _table(facts: dict[str, dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("", *facts, box=None, header_style="bold", title="agreement", padding=(0, 2, 0, 0))
    table.add_row("pictures x raters", *(f"{each['pictures']} x {each['raters']}" for each in facts.values()))
    for level in ("ordinal", "interval", "nominal"):
        cells = (each["alpha"][level] for each in facts.values())
        shown = (f"{_number(a['value'])} [{_number(a['low'])}, {_number(a['high'])}]" for a in cells)
        table.add_row(f"alpha, {level}", *shown)
    rows = {"exact": "judge = majority", "near": "judge within 1", "exact_without_splits": "the same, without splits"}
    if all("consistency" in each for each in facts.values()):
        for key, name in rows.items():
            table.add_row(name, *(_share(each["consistency"][key]) for each in facts.values()))
        table.add_row("splits", *(str(each["consistency"]["splits"]) for each in facts.values()))
    return table


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
