"""An ablation in the report: arms and metrics, CP against PF, the same prompts by every arm, curves of the arms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.ablation.arms import UNTUNED
from mentor_rl.ablation.outcome import (
    BENCHMARK,
    REWARDS,
    TITLES,
    ArmOutcome,
    Cell,
    Outcome,
    change_lines,
    shown_value,
)
from mentor_rl.gallery import Gallery
from mentor_rl.plot import Point, heat_map
from mentor_rl.report.benchmarks import scatter
from mentor_rl.report.curves import Metrics, charts_of_runs, mean_metrics, read_metrics
from mentor_rl.report.markup import figure, section, table
from mentor_rl.report.pictures import benchmark_pictures, last_pictures, side_by_side

NAMED = 6  # unfinished runs


def ablation_section(folder: Path, label: str, anchor: str) -> str:
    """All about one ablation, under its own heading."""
    outcome = Outcome.read(folder / "results" / "ablation.json")
    missing = _missing(outcome.missing)
    parts = [
        f"<h1>{escape(label)} <small>ablate</small></h1>",
        f"<p>{escape(outcome.about)}</p><p class='note'>{escape(outcome.caption())}</p>",
        f"<p class='alarm'>{escape(missing)}</p>" if missing else "",
        section("Arms", _arms(outcome)),
        *(section(TITLES[panel], _panel(outcome, panel)) for panel in outcome.panels()),
        section("Beside the paper", _published(outcome)),
        section(
            "CP against PF", _scatter(outcome), "Large: the mean over seeds; small: each seed. Lines: equal products."
        ),
        section(
            "Pictures",
            _pictures(folder, outcome),
            "The same prompt and the first seed: the last recorded step of GRPO, or the benchmark's own.",
        ),
        section("Curves", _curves(folder, outcome), "Means over the seeds."),
    ]
    return f"<section id='{anchor}'>{''.join(parts)}</section>"


def _missing(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"Not finished: {', '.join(names[:NAMED])}{more}."


def _published(outcome: Outcome) -> str:
    """The paper's rows with our arms beneath, or why they are left out."""
    try:
        beside = outcome.published_rows()
    except UserError as error:
        return f"<p class='note'>{escape(str(error))}</p>"
    if beside is None:
        return ""
    told, rows = beside
    title = f"<h3>MENTOR, table {told.number}: {escape(told.title)}</h3>"
    below = f"<p class='note'>{escape(told.footnote.strip())} Published: {escape(told.source)}.</p>"
    return (
        title
        + table(["", *map(escape, told.columns)], [[*map(escape, (name, *cells))] for name, cells in rows])
        + below
    )


def _arms(outcome: Outcome) -> str:
    rows = []
    for name, arm in outcome.arms.items():
        changes = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in arm.changes.items())
        rows.append([escape(name), str(len(arm.seeds)), escape(", ".join(arm.trained)), escape(changes)])
    return table(["arm", "seeds", "trained on", "changes"], rows, "runs")


def _panel(outcome: Outcome, panel: str) -> str:
    names = outcome.metrics(panel)
    rows = []
    for name, arm in outcome.arms.items():
        cells = arm.panels.get(panel, {})
        rows.append([escape(name), *(_cell(cells.get(metric), arm, panel, metric) for metric in names)])
    note = (
        "<p class='note'>Dotted: held out. Every other reward was trained on in that arm.</p>"
        if panel == REWARDS
        else ""
    )
    return _heat(outcome, panel) + note + table(["arm", *map(escape, names)], rows)


def _cell(cell: Cell | None, arm: ArmOutcome, panel: str, metric: str) -> str:
    """Value, and below it the change with its verdict, then its intervals."""
    if cell is None:
        return ""
    value = escape(shown_value(cell))
    held_out = panel == REWARDS and arm.trained and metric not in arm.trained
    shown = f"<span class='held'>{value}</span>" if held_out else value
    kind = cell.verdict if cell.beyond_noise else "noise"
    change = "<br>".join(map(escape, change_lines(cell)))
    return f"{shown}<br><small class='{kind}'>{change}</small>" if change else shown


def _heat(outcome: Outcome, panel: str) -> str:
    """Changes from the reference, each column by its own largest change."""
    names = outcome.metrics(panel)
    arms = [name for name in outcome.arms if name != outcome.reference]
    values: dict[tuple[str, str], float] = {}
    texts: dict[tuple[str, str], str] = {}
    beyond_noise: set[tuple[str, str]] = set()
    for arm in arms:
        for metric, cell in outcome.arms[arm].panels.get(panel, {}).items():
            if cell.change is not None:
                mark = {"up": " ▲", "down": " ▼"}.get(cell.verdict, "")
                values[arm, metric], texts[arm, metric] = cell.change[0], f"{cell.change[0]:+.3f}{mark}"
                if mark:
                    beyond_noise.add((arm, metric))
    chart = heat_map(
        f"Change from {outcome.reference}; coloured: beyond noise", arms, names, values, texts, beyond_noise
    )
    return f"<div class='scroll' tabindex='0'>{figure(chart, 'heat')}</div>" if chart else ""


def _scatter(outcome: Outcome) -> str:
    points: dict[str, Point] = {}
    seeds: dict[str, list[Point]] = {}
    for name, arm in outcome.arms.items():
        cells = arm.panels.get(BENCHMARK, {})
        if "CP" in cells and "PF" in cells:
            points[name] = (cells["PF"].value, cells["CP"].value)
            shared = [seed for seed in cells["CP"].per_seed if seed in cells["PF"].per_seed]
            seeds[name] = [(cells["PF"].per_seed[seed], cells["CP"].per_seed[seed]) for seed in shared]
    chart = figure(scatter(points, seeds), "large")
    return f'<div class="charts">{chart}</div>' if chart else ""


def _pictures(folder: Path, outcome: Outcome) -> str:
    columns = {}
    for name, arm in outcome.arms.items():
        tuned = arm.tuned.get(str(outcome.seeds[0]))
        found = last_pictures(folder / tuned) if tuned is not None else None
        if found is not None:
            columns[name] = found
    reference, untuned = columns.get(outcome.reference), outcome.arms.get(UNTUNED)
    if untuned is not None and untuned.panels.get(REWARDS) and reference is not None:  # its step 0 is the start
        columns[UNTUNED] = reference[0], reference[0].steps[0]
    if not columns:  # nothing was tuned by GRPO: the benchmark's own pictures
        columns = _measured_pictures(folder, outcome)
    ordered = {name: columns[name] for name in outcome.arms if name in columns}
    return side_by_side(ordered, list(outcome.arms))


def _measured_pictures(folder: Path, outcome: Outcome) -> dict[str, tuple[Gallery, int]]:
    """What each arm of the first seed drew for the first items of the benchmark's last split."""
    columns = {}
    for name, arm in outcome.arms.items():
        measured = arm.measured.get(str(outcome.seeds[0]))
        splits = benchmark_pictures(folder / measured) if measured is not None else {}
        if splits:
            columns[name] = next(iter(list(splits.values())[-1].values()))  # each holds the arm's policy alone
    return columns


def _curves(folder: Path, outcome: Outcome) -> str:
    runs: dict[str, Metrics] = {}
    for name, arm in outcome.arms.items():
        runs[name] = mean_metrics([read_metrics(RunFolder(folder / run)) for run in arm.tuned.values()])
    return charts_of_runs(runs)
