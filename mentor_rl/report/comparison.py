"""Several runs next to each other: a table of them, benchmarks, the same prompt's pictures, curves in one chart."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from mentor_base.runlog import RunFolder
from mentor_rl.evaluate.result import Result
from mentor_rl.gallery import Gallery
from mentor_rl.report.benchmarks import read_results, results_together
from mentor_rl.report.curves import charts_of_runs, read_metrics
from mentor_rl.report.markup import section, table
from mentor_rl.report.pictures import benchmark_pictures, last_pictures, side_by_side
from mentor_rl.report.run import facts_of

SHOWN = ("steps", "seed", "minutes", "policy")


def comparison_section(runs: Mapping[str, tuple[Path, str]], extra: Mapping[str, Result]) -> str:
    """What two or more runs and results have in common.

    Args:
        runs: label -> (run folder, anchor of its own section).
        extra: label -> a result that was named by itself.
    """
    galleries = {label: found for label, (path, _) in runs.items() if (found := last_pictures(path)) is not None}
    results = [(label, result) for label, (path, _) in runs.items() for result in read_results(path).values()]
    note = "The same prompt, the last recorded step of each run, scores in native units."
    parts = [
        "<h1>Side by side</h1>",
        _table_of(runs),
        results_together([*results, *extra.items()]),
        section("Pictures", side_by_side(galleries, list(runs)), note),
        *_benchmarks_side_by_side(runs),
        section("Curves", charts_of_runs({label: read_metrics(RunFolder(path)) for label, (path, _) in runs.items()})),
    ]
    return f"<section id='together'>{''.join(parts)}</section>"


def _benchmarks_side_by_side(runs: Mapping[str, tuple[Path, str]]) -> list[str]:
    """The first items of each split that several runs were measured on, all their rows next to each other."""
    splits: dict[str, dict[str, tuple[Gallery, int]]] = {}
    holders: dict[str, set[str]] = {}
    for label, (path, _) in runs.items():
        for split, rows in benchmark_pictures(path).items():
            splits.setdefault(split, {}).update({f"{label}: {name}": shown for name, shown in rows.items()})
            holders.setdefault(split, set()).add(label)
    return [
        section(f"Pictures: {split.replace('_', ' ')}", side_by_side(columns, list(columns)))
        for split, columns in splits.items()
        if len(holders[split]) > 1
    ]


def _table_of(runs: Mapping[str, tuple[Path, str]]) -> str:
    rows: list[list[str]] = []
    for label, (path, anchor) in runs.items():
        run = RunFolder(path)
        recipe = run.recipe()
        facts = facts_of(run, read_metrics(run))
        link = f"<a href='#{anchor}'>{escape(label)}</a>"
        told = ["" if not facts[name] and name != "seed" else escape(str(facts[name])) for name in SHOWN]
        rows.append([link, escape(str(recipe.get("kind"))), *told, escape(str(recipe.get("about", "")))])
    head = ["run", "kind", *SHOWN, "about"]
    filled = [place for place in range(len(head)) if any(row[place] for row in rows)]
    return table([head[place] for place in filled], [[row[place] for place in filled] for row in rows], "runs")
