"""Groups that a run was trained on, and what its metrics mean."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mentor_rl.monitors.group_files import KeptPicture
from mentor_rl.monitors.metrics import lines_for
from mentor_rl.report.markup import picture, scores_title, table


def groups_trained_on(tables: Mapping[int, Sequence[KeptPicture]]) -> str:
    """The first and the last table that a run kept: a row per group, the best advantage in front."""
    if not tables:
        return ""
    steps = dict.fromkeys((min(tables), max(tables)))
    rows = [
        _group_row(step, list(group))
        for step in steps
        for _, group in itertools.groupby(tables[step], key=lambda row: row.uid)
    ]
    head = "<tr><th>step</th><th>reference</th><th colspan='99' class='text'>pictures, with their advantages</th></tr>"
    return f"<div class='scroll' tabindex='0'><table class='film'>{head}{''.join(rows)}</table></div>"


def _group_row(step: int, group: Sequence[KeptPicture]) -> str:
    ordered = sorted(group, key=lambda row: row.advantage, reverse=True)
    references = "".join(picture(file, "") for file in group[0].references)
    drawn = (picture(row.picture, f"{row.advantage:+.2f}", scores_title(row.scores)) for row in ordered)
    cells = "".join(f"<td>{each}</td>" for each in drawn)
    text = f"<td class='text prompt'>{escape(group[0].text)}</td>"
    return f"<tr class='card'><td>{step}</td><td>{references}</td>{cells}{text}</tr>"


def metric_table(names: Iterable[str]) -> str:
    """What each of these metrics is, folded away."""
    rows = [(escape(line.name), escape(line.unit), escape(line.meaning)) for line in lines_for(names)]
    body = table(["metric", "unit", "meaning"], rows, "bench words")
    return f"<details><summary>What the metrics mean</summary>{body}</details>" if rows else ""
