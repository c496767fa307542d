"""What the report says about one run: facts, monitors, pictures, benchmarks, curves, recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from mentor_base.runlog import RunFolder
from mentor_rl import gallery
from mentor_rl.monitors.group_files import read_groups
from mentor_rl.monitors.sentences import Sign, fixed_prompts, signs
from mentor_rl.report.benchmarks import read_results, results_section
from mentor_rl.report.curves import Metrics, charts_of_run, read_metrics
from mentor_rl.report.groups import groups_trained_on, metric_table
from mentor_rl.report.markup import details, section
from mentor_rl.report.pictures import before_after, benchmark_pictures, over_time, sample_grids, side_by_side


def run_section(path: Path, label: str, anchor: str) -> str:
    """All about one run, under its own heading."""
    run = RunFolder(path)
    recipe, manifest = run.recipe(), run.manifest()
    metrics = read_metrics(run)
    watched = signs(metrics, recipe)
    shown = gallery.read(path)
    steps = shown.steps if shown is not None else ()
    before = f"{fixed_prompts(recipe)}: reference, step {min(steps, default=0)}, "
    parts = [
        f"<h1>{escape(label)} <small>{escape(str(recipe.get('kind')))}</small></h1>",
        f"<p>{escape(str(recipe.get('about', '')))}</p>",
        facts_strip(facts_of(run, metrics)),
        section("Before and after", before_after(shown) if shown else "", f"{before}step {max(steps, default=0)}."),
        results_section(read_results(path)),
        *_benchmark_pictures(path),
        _signs(watched),
        section("Curves", charts_of_run(metrics, [sign.alarm for sign in watched if sign.alarm is not None])),
        section("Fixed prompts over time", over_time(shown) if shown else "", "Scores show on hover."),
        section(
            "Groups trained on", groups_trained_on(read_groups(path)), "First and last kept. Scores show on hover."
        ),
        section("Sample grids", sample_grids(path)),
        metric_table(metrics),
        details("Resolved recipe", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)),
        details("Manifest", json.dumps(manifest, indent=2)),
    ]
    return f"<section id='{anchor}'>{''.join(parts)}</section>"


def facts_of(run: RunFolder, metrics: Metrics) -> dict[str, Any]:
    """What the strip below a heading shows, and a row of the table of runs."""
    recipe, manifest, seconds = run.recipe(), run.manifest(), run.logged_seconds()
    return {
        "steps": int(max(points[-1][0] for points in metrics.values())) if metrics else None,
        "seed": recipe.get("seed"),
        "minutes": round(seconds / 60, 1) if seconds else None,
        "policy": recipe.get("policy") or recipe.get("init"),
        "torch": manifest.get("versions", {}).get("torch"),
        "cores": manifest.get("cores"),
    }


def facts_strip(facts: Mapping[str, Any]) -> str:
    items = "".join(f"<div><b>{escape(str(v))}</b><span>{k}</span></div>" for k, v in facts.items() if v is not None)
    return f'<div class="facts">{items}</div>'


def _benchmark_pictures(path: Path) -> list[str]:
    """The first items of each split, policies side by side."""
    return [
        section(f"Pictures: {split.replace('_', ' ')}", side_by_side(columns, list(columns), least=1))
        for split, columns in benchmark_pictures(path).items()
    ]


def _signs(watched: Sequence[Sign]) -> str:
    """What the monitors say, alarms first in the eye."""
    items = "".join(f"<li{' class=alarm' * (sign.alarm is not None)}>{escape(sign.text)}</li>" for sign in watched)
    return section("Monitors", f'<ul class="signs">{items}</ul>' if items else "")
