"""Benchmark results: the table of one, and several that can be compared in one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from mentor_base.errors import UserError
from mentor_rl.evaluate.published import ours_in, shown, table_beside
from mentor_rl.evaluate.result import Result, result_files
from mentor_rl.plot import Point, scatter_chart
from mentor_rl.report.markup import figure, mean_of, picture, section, table, value_cell


def read_results(run: Path) -> dict[Path, Result]:
    """The benchmark results that a run or an exported checkpoint holds."""
    return {file: Result.read(file) for file in result_files(run)}


def results_section(results: Mapping[Path, Result]) -> str:
    """Each result with its table, its scatter plot and its gallery."""
    parts = []
    for file, result in results.items():
        chart = figure(scatter(cp_pf(result)))
        charts = f'<div class="charts">{chart}</div>' if chart else ""
        sheet = file.with_suffix(".png")
        gallery = figure(picture(sheet, "", f"gallery of {result.benchmark}"), "wide") if sheet.exists() else ""
        parts.append(section(result.benchmark, result_table({"": result}) + published_table(result) + charts + gallery))
    return "".join(parts)


def results_together(results: Iterable[tuple[str, Result]]) -> str:
    """Results of one benchmark by one judge on the same prompts in one table; others stay apart."""
    groups: dict[tuple[str, str, bool, str], dict[str, Result]] = {}
    for label, result in results:
        groups.setdefault((result.benchmark, result.judge, result.stand_in, result.prompts), {})[label] = result
    parts = []
    for (benchmark, *_), group in groups.items():
        if len(group) > 1:
            points = {
                f"{label}: {row}": point for label, result in group.items() for row, point in cp_pf(result).items()
            }
            chart = figure(scatter(points))
            charts = f'<div class="charts">{chart}</div>' if chart else ""
            parts.append(section(f"{benchmark}, together", result_table(group) + charts))
    return "".join(parts)


def result_table(results: Mapping[str, Result]) -> str:
    """Rows of ``Result.metrics``: {row name: {metric: value | [mean, low, high]}}; who judged below."""
    columns = list(dict.fromkeys(name for result in results.values() for name in result.columns()))
    rows = [
        [escape(f"{label}: {name}" if label else name), *(value_cell(row.get(column)) for column in columns)]
        for label, result in results.items()
        for name, row in result.metrics.items()
    ]
    first = next(iter(results.values()))
    judge = f"Judge: {first.judge}{' (a stand-in: not comparable with published numbers)' if first.stand_in else ''}. "
    seeds = f"Seeds: {', '.join(dict.fromkeys(str(list(result.seeds)) for result in results.values()))}."
    gaps = [
        f"{label or first.benchmark}: {scored:g} of {asked:g} pictures scored"
        for label, result in results.items()
        if (scored := result.coverage.get("scored", 0)) != (asked := result.coverage.get("items", scored))
    ]
    told = dict.fromkeys([*gaps, *(note for result in results.values() for note in result.notes)])
    notes = "".join(f"<li>{escape(note)}</li>" for note in told)
    below = f"<p>{escape(judge + seeds)}</p>" + (f"<ul>{notes}</ul>" if notes else "")
    return table(["", *map(escape, columns)], rows) + below


def published_table(result: Result) -> str:
    """The paper's rows with the result's beneath, or why they are left out; nothing where the paper has none."""
    try:
        table_of = table_beside(result)
    except UserError as error:
        return f"<p class='note'>Published numbers are left out. {escape(str(error))}</p>"
    if table_of is None:
        return ""
    rows = [[escape(name), *map(shown, values)] for name, values in table_of.rows.items()]
    rows += [[f"<b>{escape(name)} (ours)</b>", *(value_cell(v) for v in ours_in(table_of, result, name))]
             for name in result.checkpoints]  # fmt: skip
    where = f"table {table_of.number}" if table_of.number is not None else "paper"
    title = f"<h3>MENTOR, {where}: {escape(table_of.title)}</h3>"
    told = f"<p class='note'>{escape(table_of.footnote.strip())} Published: {escape(table_of.source)}.</p>"
    return title + table(["", *map(escape, table_of.columns)], rows) + told


def cp_pf(result: Result) -> dict[str, Point]:
    """Row -> (PF, CP) of the rows that have both, as shares of one."""
    points = {}
    for name, row in result.metrics.items():
        cp, pf = mean_of(row.get("CP")), mean_of(row.get("PF"))
        if cp is not None and pf is not None:
            points[name] = (pf, cp)
    return points if all(0.0 <= each <= 1.0 for point in points.values() for each in point) else {}


def scatter(points: Mapping[str, Point], seeds: Mapping[str, Sequence[Point]] | None = None) -> str:
    if not points:
        return ""
    return scatter_chart("Concept preservation against prompt following", points, "PF", "CP", faint=seeds or {})
