"""The paper's tables as data, and a benchmark's own rows beside them.

``published_tables()`` reads published.yaml, which says where every number comes from. Numbers by a stand-in judge, or
of a part of the items, are never put into one table with published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import yaml

from mentor_base.errors import UserError, nearest
from mentor_rl.evaluate.result import PART, Result, Value, cell

Published = float | tuple[float, float] | None  # a pair is mean ± deviation


@dataclass(frozen=True)
class PublishedTable:
    """One table.

    Attributes:
        name: key of the table here.
        number: in the paper's second version; None where that is not known.
        benchmark: whose Results stand beside it; None: of no single benchmark.
        columns: name -> place in a Result, "part/metric"; None where a Result has no such metric.
        rows: method -> a value per column.
        source: where the numbers were read.
        footnote: how the published protocol differs from the one here.
        items: how many the benchmark has; None where its data set cannot be cut short.
        settings: keys of the benchmark's recipe that must have these values.
    """

    name: str
    number: int | None
    benchmark: str | None
    title: str
    columns: Mapping[str, str | None]
    rows: Mapping[str, tuple[Published, ...]]
    source: str
    footnote: str
    items: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_ablation(self) -> bool:
        """Whether its rows are arms that were measured by CP and PF as wholes, which an ablation can stand beneath."""
        return self.benchmark is None and {"/CP", "/PF"} <= set(self.columns.values())

    def value(self, row: str, column: str) -> Published:
        """One number.

        Raises:
            UserError: no such row or column.
        """
        if row not in self.rows:
            raise UserError(f"published table '{self.name}': unknown row '{row}'; {nearest(row, self.rows)}")
        if column not in self.columns:
            raise UserError(
                f"published table '{self.name}': unknown column '{column}'; {nearest(column, self.columns)}"
            )
        return self.rows[row][list(self.columns).index(column)]


@cache
def published_tables() -> dict[str, PublishedTable]:
    """All tables by name."""
    text = resources.files("mentor_rl.evaluate").joinpath("published.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    tables = {}
    for facts in data["tables"]:
        rows = {
            name: tuple(tuple(value) if isinstance(value, list) else value for value in values)
            for name, values in facts["rows"].items()
        }
        source = data["sources"][facts["source"]]
        tables[facts["name"]] = PublishedTable(**{**facts, "rows": rows, "source": source})
    return tables


def table_beside(result: Result) -> PublishedTable | None:
    """The published table that a result's rows may stand beside; None where there is none.

    Raises:
        UserError: a stand-in judged, the recipe asks otherwise, only some of the items were asked for, or not all
            pictures have a score.
    """
    table = next((table for table in published_tables().values() if table.benchmark == result.benchmark), None)
    if table is None:
        return None
    if result.stand_in:
        raise UserError(
            f"{result.benchmark}: judged by a stand-in ({result.judge}): not comparable with published numbers"
        )
    for key, theirs in table.settings.items():
        ours = result.details.get("settings", {}).get(key)
        if ours != theirs:
            raise UserError(
                f"{result.benchmark}: {key} is {'not known' if ours is None else ours}, published numbers need {theirs}"
            )
    asked = result.details.get("items")
    if asked != result.details.get("all items") or (table.items is not None and asked != table.items):
        raise UserError(
            f"{result.benchmark}: only some of the items were asked for: not comparable with published numbers"
        )
    if result.coverage.get("scored") != result.coverage.get("items"):
        raise UserError(f"{result.benchmark}: not all pictures were scored: not comparable with published numbers")
    return table


def published_markdown(result: Result) -> str:
    """The published table with the result's rows beneath; else a line that says why not; empty where there is none."""
    try:
        table = table_beside(result)
    except UserError as error:
        return f"\nPublished numbers are left out. {error}\n"
    if table is None:
        return ""
    where = f"table {table.number}" if table.number is not None else "paper"
    lines = [f"| MENTOR, {where}: {table.title} | {' | '.join(table.columns)} |"]
    lines.append("|---" * (len(table.columns) + 1) + "|")
    lines += [f"| {name} | {' | '.join(map(shown, values))} |" for name, values in table.rows.items()]
    for row in result.checkpoints:
        ours = map(cell, ours_in(table, result, row))
        lines.append(f"| **{row}** (ours)[^protocol] | {' | '.join(ours)} |")
    notes = " ".join([table.footnote.strip(), *(f"Here: {note}." for note in result.notes)])
    return "\n" + "\n".join(lines) + f"\n\n[^protocol]: {notes} Judge: {result.judge}. Published: {table.source}.\n"


def shown(value: Published) -> str:
    """As the paper prints it."""
    if isinstance(value, tuple):
        return f"{value[0]:g} ± {value[1]:g}"
    return "–" if value is None else f"{value:g}"


def ours_in(table: PublishedTable, result: Result, row: str) -> list[Value]:
    """A row of the result in the columns of a table."""
    return [_ours(result, row, place) for place in table.columns.values()]


def _ours(result: Result, row: str, place: str | None) -> Value:
    if place is None:
        return None
    part, metric = place.split("/", 1)
    return result.metrics.get(f"{row}{PART}{part}" if part else row, {}).get(metric)
