"""``mentor compare``: two results or two GRPO runs on the terminal, with a verdict for each metric."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mentor_rl.evaluate.compare import Row, Side

MARKS = {"up": "[green]▲ up[/green]", "down": "[red]▼ down[/red]"}


def compare(
    before: Annotated[
        Path, typer.Argument(metavar="A", help="A result (.json), a folder with results/, or a GRPO run.")
    ],
    after: Annotated[Path, typer.Argument(metavar="B", help="What is compared with it; may be the same result.")],
    first: Annotated[str | None, typer.Option("--a", metavar="POLICY", help="Of A, where it holds several.")] = None,
    second: Annotated[str | None, typer.Option("--b", metavar="POLICY", help="Of B, where it holds several.")] = None,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="Compare though the items differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs, with the intervals of A and B.")] = False,
) -> None:
    """Say of each metric whether B differs from A by more than noise."""
    from mentor_rl.evaluate.compare import compare_sides, read_side
    from mentor_rl.evaluate.result import finite

    sides = read_side(before, first), read_side(after, second)
    rows, how = compare_sides(*sides, unpaired=unpaired)
    if as_json:
        print(json.dumps({"how": how, "rows": [finite(asdict(row)) for row in rows]}, indent=1, ensure_ascii=False))
    else:
        show(sides, rows, how)


def show(sides: tuple[Side, Side], rows: Sequence[Row], how: str) -> None:
    """The table, and a line on how it was made."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mentor_rl.evaluate.result import number

    console = Console(highlight=False)
    for letter, side in zip("AB", sides, strict=True):
        console.print(f"{letter}: {side.name} ({side.where})", markup=False, soft_wrap=True)
    table = Table("metric", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("A", "B", "B - A", "of A"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        share = "" if row.relative is None or not all(map(math.isfinite, row.relative)) else f"{row.relative[0]:+.1%}"
        cells = (number(row.before[0]), number(row.after[0]), _change(row.change), share)
        table.add_row(escape(row.metric), *map(escape, cells), MARKS.get(row.verdict, row.verdict))
    console.print(table)
    console.print(how, markup=False, soft_wrap=True)
    if sides[0].facts.get("stand_in"):
        console.print(f"judge (a stand-in): {sides[0].facts['judge']}", markup=False, soft_wrap=True)


def _change(value: Sequence[float] | None) -> str:
    if value is None:
        return ""
    mean, low, high = value
    return f"{mean:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if math.isfinite(low) else "")
