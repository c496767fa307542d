"""Curves from metrics.jsonl: a run's metrics by subject, and the same metric of several runs in one chart."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from mentor_base.runlog import RunFolder
from mentor_rl.plot import Point, dot, line_chart
from mentor_rl.report.markup import figure

# Title of a chart -> which metrics belong to it; group 1 is the name in the legend. First match wins.
CHARTS: tuple[tuple[str, str], ...] = (
    ("Reward: weighted sum, mean of a step", r"(reward)"),
    ("Each reward: mean of a step", r"rewards/([^/]+)/mean"),
    ("Each reward: spread within groups", r"rewards/([^/]+)/group_std"),
    ("Each reward: share of scores at a bound", r"rewards/([^/]+)/saturated"),
    ("Each reward: share of failed scores", r"rewards/([^/]+)/failed"),
    ("Each reward: seconds a step", r"rewards/([^/]+)/seconds"),
    ("Held-out rewards: evidence of hacking, deviations", r"hacking/([^/]+)"),
    ("Fixed prompts: mean score", r"eval/([^/]+)"),
    ("KL to the reference, per token", r"(kl)"),
    ("Entropy, nats per token", r"(entropy)"),
    ("Gap: sampler's and recomputed log-prob", r"gap/(mean|max)"),
    ("Share of clipped tokens", r"(clip_share)"),
    ("Weight of the entropy bonus", r"(entropy_coefficient)"),
    ("Importance weights", r"importance/(mean|capped)"),
    ("Mean weight of a sequence (vespo)", r"(vespo_weight)"),
    ("Guidance of a step's prompts", r"guidance/(mean)"),
    ("Diversity within groups: tokens", r"(diversity)"),
    ("Diversity within groups: pixels", r"diversity_(pixels)"),
    ("Copies: share of pictures", r"copies/(share)"),
    ("Copies: mean similarity to the reference", r"copies/(similarity)"),
    ("Gradient norm", r"(grad_norm)"),
    ("Loss", r"(loss)"),
    ("Validation loss", r"val/([^/]+)"),
    ("Rise of the loss with another example's reference", r"reference/([^/]+)"),
    ("Learning rate", r"(lr|learning_rate)"),
    ("Seconds a step", r"seconds/(\w+)"),
)
SMOOTH = 0.85
MARKED = ("Reward", "Each reward: mean", "Held-out")  # charts in which an alarm is marked
EXACT = ("Fixed", "Validation", "Rise", "Learning", "Held-out")  # charts whose points are no noisy samples

Metrics = dict[str, list[Point]]


def read_metrics(run: RunFolder) -> Metrics:
    """Every numeric metric of the run as points (step, value)."""
    series: Metrics = {}
    for line in run.metrics():
        for key, value in line.items():
            if key not in ("step", "seconds") and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(key, []).append((float(line["step"]), float(value)))
    return series


def run_charts(metrics: Metrics, alarms: Sequence[float] = ()) -> dict[str, str]:
    """Title -> SVG: a chart per subject, a line per name; a dashed mark at each alarm."""
    charts = {}
    for title, keys in _placed(metrics):
        series = {name: metrics[key] for name, key in keys.items() if len(metrics[key]) > 1}
        marks = alarms if title.startswith(MARKED) else ()
        charts[title] = line_chart(title, series, smooth=_smoothing(title), marks=marks)
    return {title: chart for title, chart in charts.items() if chart}


def charts_of_run(metrics: Metrics, alarms: Sequence[float]) -> str:
    """All charts of a run, as HTML."""
    return _grid([figure(chart) for chart in run_charts(metrics, alarms).values()])


def charts_of_runs(runs: Mapping[str, Metrics]) -> str:
    """A chart per metric that two or more runs have and that changes, a line per run in that run's colour."""
    known: Metrics = {key: points for metrics in runs.values() for key, points in metrics.items()}
    charts = []
    for title, keys in _placed(known):
        for name, key in keys.items():
            series = {run: metrics.get(key, []) for run, metrics in runs.items()}
            values = {value for points in series.values() for _, value in points}
            if sum(len(points) > 1 for points in series.values()) > 1 and len(values) > 1:
                charts.append(figure(line_chart(title, series, smooth=_smoothing(title), below=name)))
    names = {run: place for place, run in enumerate(runs) if runs[run]}
    return legend(names) + _grid(charts) if any(charts) else ""


def legend(places: Mapping[str, int]) -> str:
    """Each run's sign: its name -> its place among all runs of the page, which decides its colour in every chart."""
    signs = (f"<span>{dot(place)}{escape(name)}</span>" for name, place in places.items())
    return f"<p class='legend'>{''.join(signs)}</p>"


def mean_metrics(runs: Sequence[Metrics]) -> Metrics:
    """The mean of several runs at each step that all of them have."""
    shared = [key for key in runs[0] if all(key in run for run in runs)] if runs else []
    mean: Metrics = {}
    for key in shared:
        values = [dict(run[key]) for run in runs]
        steps = sorted(set.intersection(*(set(each) for each in values)))
        mean[key] = [(step, sum(each[step] for each in values) / len(values)) for step in steps]
    return mean


def _placed(metrics: Metrics) -> Iterator[tuple[str, dict[str, str]]]:
    """(title, legend's name -> metric) of each chart; every metric in the first that takes it."""
    placed: set[str] = set()
    for title, pattern in CHARTS:
        keys = {}
        for key in metrics:
            match = re.fullmatch(pattern, key)
            if match and key not in placed:
                keys[match.group(1)] = key
                placed.add(key)
        if keys:
            yield title, keys


def _smoothing(title: str) -> float:
    return 0.0 if title.startswith(EXACT) else SMOOTH


def _grid(charts: Sequence[str]) -> str:
    shown = "".join(charts)
    return f'<div class="charts">{shown}</div>' if shown else ""
