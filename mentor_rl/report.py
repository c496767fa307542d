"""One self-contained HTML file about one or several runs: what the monitors say, curves, the fixed prompts over time,
before and after, the benchmark table and the resolved recipe.

Everything that comes from a run is escaped; pictures are embedded; nothing is loaded from outside.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mentor_base.errors import UserError
from mentor_base.runlog import MARKER, RunFolder, write_atomically
from mentor_rl import gallery
from mentor_rl.evaluate.result import Result
from mentor_rl.monitors.sentences import Sign, signs
from mentor_rl.plot import Point, line_chart, scatter_chart

# Title of a chart -> which metrics belong to it; group 1 is the name in the legend. First match wins.
CHARTS: tuple[tuple[str, str], ...] = (
    ("Reward: weighted sum, mean of a step", r"(reward)"),
    ("Each reward: mean of a step", r"rewards/([\w.]+)/mean"),
    ("Each reward: spread within groups", r"rewards/([\w.]+)/group_std"),
    ("Each reward: share of scores at a bound", r"rewards/([\w.]+)/saturated"),
    ("Each reward: share of failed scores", r"rewards/([\w.]+)/failed"),
    ("Each reward: seconds a step", r"rewards/([\w.]+)/seconds"),
    ("Held-out rewards: evidence of hacking, deviations", r"hacking/([\w.]+)"),
    ("Fixed unseen prompts: mean score", r"eval/([\w.]+)"),
    ("KL to the frozen reference, per token", r"(kl)"),
    ("Entropy, nats per token", r"(entropy)"),
    ("Gap: sampler's and recomputed log-prob", r"gap/(mean|max)"),
    ("Diversity within groups: tokens", r"(diversity)"),
    ("Diversity within groups: pixels", r"diversity_(pixels)"),
    ("Copies: share of pictures", r"copies/(share)"),
    ("Copies: mean similarity to the reference", r"copies/(similarity)"),
    ("Gradient norm", r"(grad_norm)"),
    ("Loss", r"(loss)"),
    ("Validation loss", r"val/([\w.]+)"),
    ("Rise of the loss with another example's reference", r"reference/([\w.]+)"),
    ("Learning rate", r"(lr|learning_rate)"),
    ("Seconds a step", r"seconds/(\w+)"),
)
SMOOTH = 0.85
MARKED = ("Reward", "Each reward: mean", "Held-out")  # charts in which an alarm is marked
EXACT = ("Fixed", "Validation", "Rise", "Learning", "Held-out")  # charts whose points are no noisy samples

Metrics = dict[str, list[Point]]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of these run folders to ``out`` (an .html file, or a folder that gets report.html)."""
    for run in runs:
        if not (run / MARKER).exists():
            raise UserError(f"{run}: expected a run folder (with {MARKER}), found none")
    target = out if out.suffix == ".html" else out / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(_run_section(run) for run in runs)
    title = ", ".join(run.name for run in runs)
    write_atomically(target, _PAGE.format(title=escape(title), style=_style(), body=body))
    return target


def _run_section(path: Path) -> str:
    run = RunFolder(path)
    recipe, manifest = run.recipe(), run.manifest()
    metrics = read_metrics(run)
    watched = signs(metrics, recipe)
    parts = [
        f"<h1>{escape(path.name)} <small>{escape(str(recipe.get('kind')))}</small></h1>",
        f"<p>{escape(str(recipe.get('about', '')))}</p>",
        _facts(recipe, manifest, metrics),
        _before_after(path),
        _benchmarks(path),
        _signs(watched),
        _charts(metrics, [sign.alarm for sign in watched if sign.alarm is not None]),
        _over_time(path),
        _sample_grids(path),
        _details("Resolved recipe", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)),
        _details("Manifest", json.dumps(manifest, indent=2)),
    ]
    return f"<section>{''.join(parts)}</section>"


def read_metrics(run: RunFolder) -> Metrics:
    """Every numeric metric of the run as points (step, value)."""
    series: Metrics = {}
    for line in run.metrics():
        for key, value in line.items():
            if key not in ("step", "seconds") and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(key, []).append((float(line["step"]), float(value)))
    return series


def _facts(recipe: Mapping[str, Any], manifest: Mapping[str, Any], metrics: Metrics) -> str:
    steps = int(max((points[-1][0] for points in metrics.values()), default=0))
    facts = {
        "steps": steps,
        "seed": recipe.get("seed"),
        "minutes": round(float(manifest.get("seconds", 0)) / 60, 1) if "seconds" in manifest else None,
        "policy": recipe.get("policy") or recipe.get("init"),
        "torch": manifest.get("versions", {}).get("torch"),
        "cores": manifest.get("cores"),
    }
    items = "".join(f"<div><b>{escape(str(v))}</b><span>{k}</span></div>" for k, v in facts.items() if v is not None)
    return f'<div class="facts">{items}</div>'


def _signs(watched: Sequence[Sign]) -> str:
    """What the monitors say, alarms first in the eye."""
    items = "".join(f"<li{' class=alarm' * (sign.alarm is not None)}>{escape(sign.text)}</li>" for sign in watched)
    return f'<h2>Monitors</h2><ul class="signs">{items}</ul>' if items else ""


def _charts(metrics: Metrics, alarms: Sequence[float]) -> str:
    placed: set[str] = set()
    charts = []
    for title, pattern in CHARTS:
        series = {}
        for key, points in metrics.items():
            match = re.fullmatch(pattern, key)
            if match and key not in placed and len(points) > 1:
                series[match.group(1)] = points
                placed.add(key)
        marks = alarms if title.startswith(MARKED) else ()
        chart = line_chart(title, series, smooth=0.0 if title.startswith(EXACT) else SMOOTH, marks=marks)
        if chart:
            charts.append(f"<figure>{chart}</figure>")
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>' if charts else ""


def _before_after(path: Path) -> str:
    """First and last pictures of the fixed prompts, with the reference, the prompt and every score."""
    shown = gallery.read(path)
    if shown is None or len(shown.steps) < 2:
        return ""
    first, last = shown.steps[0], shown.steps[-1]
    cards = []
    for i, prompt in enumerate(shown.prompts):
        references = "".join(_picture(file, "reference") for file in prompt.references)
        before = _picture(shown.pictures[first][i], f"step {first}", _score_title(shown.scores[first][i]))
        after = _picture(shown.pictures[last][i], f"step {last}", _score_title(shown.scores[last][i]))
        table = _score_table(shown.scores[first][i], shown.scores[last][i])
        cards.append(
            f'<article><div class="trio">{references}{before}{after}</div><p>{escape(prompt.text)}</p>{table}</article>'
        )
    note = f"<p>Fixed prompts about subjects that training never saw: reference, step {first}, step {last}.</p>"
    return f'<h2>Before and after</h2>{note}<div class="cards">{"".join(cards)}</div>'


def _score_table(before: gallery.Scores, after: gallery.Scores) -> str:
    rows = []
    for name in after:
        old, new = before.get(name), after[name]
        better = "" if old is None or new is None or abs(new - old) < 5e-3 else ("up" if new > old else "down")
        rows.append(f"<tr><td>{escape(name)}</td><td>{_number(old)}</td><td class='{better}'>{_number(new)}</td></tr>")
    return f"<table class='scores'>{''.join(rows)}</table>"


def _over_time(path: Path) -> str:
    """A row per fixed prompt, a column per recorded step."""
    shown = gallery.read(path)
    if shown is None or len(shown.steps) < 3:
        return ""
    steps = shown.steps
    head = "".join(f"<th>{step}</th>" for step in steps)
    rows = []
    for i, prompt in enumerate(shown.prompts):
        references = "".join(_picture(file, "") for file in prompt.references)
        cells = "".join(
            f"<td>{_picture(shown.pictures[s][i], '', _score_title(shown.scores[s][i]))}</td>" for s in steps
        )
        rows.append(f"<tr><td>{references}</td>{cells}<td class='text'>{escape(prompt.text)}</td></tr>")
    table = f"<table class='film'><tr><th>reference</th>{head}<th>prompt</th></tr>{''.join(rows)}</table>"
    return f"<h2>Fixed prompts over time</h2><p>Scores show on hover.</p><div class='scroll'>{table}</div>"


def _benchmarks(path: Path) -> str:
    parts = []
    for file in sorted((path / "results").glob("*.json")):
        result = Result.read(file)
        parts.append(f"<h2>{escape(result.benchmark)}</h2>{_result_table(result)}{_cp_pf_chart(result)}")
        picture = file.with_suffix(".png")
        if picture.exists():
            parts.append(f'<figure class="wide">{_picture(picture, "")}</figure>')
    return "".join(parts)


def _result_table(result: Result) -> str:
    """Rows of ``result.metrics``: {row name: {metric: value | [mean, low, high]}}."""
    columns = list(dict.fromkeys(key for row in result.metrics.values() for key in row))
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{_cell(row.get(c))}</td>' for c in columns)}</tr>"
        for name, row in result.metrics.items()
    )
    judge = f"<p>Judge: {escape(str(result.judge))}. Seeds: {escape(str(list(result.seeds)))}.</p>"
    return f"<div class='scroll'><table class='bench'><tr><th></th>{head}</tr>{rows}</table></div>{judge}"


def _cp_pf_chart(result: Result) -> str:
    points = {}
    for name, row in result.metrics.items():
        cp, pf = _mean(row.get("CP")), _mean(row.get("PF"))
        if cp is not None and pf is not None:
            points[name] = (pf, cp)
    if not points:
        return ""
    chart = scatter_chart("Concept preservation against prompt following", points, "PF", "CP")
    return f'<div class="charts"><figure>{chart}</figure></div>'


def _sample_grids(path: Path) -> str:
    """The newest grids that the trainer kept, one per name."""
    newest: dict[str, Path] = {}
    for file in sorted((path / "samples").glob("step_*.png")):
        newest[file.stem.split("_", 2)[-1]] = file
    if not newest:
        return ""
    figures = "".join(
        f"<figure class='wide'><figcaption>{escape(file.stem)}</figcaption>{_picture(file, '')}</figure>"
        for file in newest.values()
    )
    return f"<h2>Sample grids</h2>{figures}"


def _picture(file: Path, label: str, title: str = "") -> str:
    if not file.exists():
        return ""
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    caption = f"<span>{escape(label)}</span>" if label else ""
    image = f'<img alt="{escape(label)}" src="data:image/png;base64,{data}">'
    return f'<span class="pic" title="{escape(title)}">{image}{caption}</span>'


def _score_title(scores: gallery.Scores) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in scores.items())


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 3:
        mean, low, high = value
        return f"{_number(mean)} <small>[{_number(low)}, {_number(high)}]</small>"
    return _number(value) if isinstance(value, int | float) or value is None else escape(str(value))


def _mean(value: Any) -> float | None:
    if isinstance(value, list | tuple):
        value = value[0]
    return float(value) if isinstance(value, int | float) else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _details(summary: str, text: str) -> str:
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _style() -> str:
    return resources.files("mentor_rl").joinpath("report.css").read_text(encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · mentor-rl</title><style>{style}</style></head><body>{body}</body></html>
"""
