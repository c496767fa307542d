"""Pieces of HTML that all sections use. Whatever comes from a run goes through ``escape`` here or where it is used."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mentor_rl.evaluate.result import number

KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def picture(file: Path, label: str, title: str = "") -> str:
    """A picture with its caption, embedded; nothing where the file is missing."""
    if not file.exists():
        return ""
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    caption = f"<span>{breakable(label)}</span>" if label else ""
    source = f"data:image/{KINDS.get(file.suffix.lower(), 'png')};base64,{data}"
    return f'<span class="pic" title="{escape(title)}"><img alt="{escape(label)}" src="{source}">{caption}</span>'


def breakable(name: str) -> str:
    """A name as HTML that a narrow place breaks between its words."""
    return re.sub(r"([_=/])", r"\1<wbr>", escape(name))


def card(prompt: str, pictures: str, below: str = "") -> str:
    """One prompt: what the search finds and the arrow keys walk through."""
    words = f"<p class='prompt'>{escape(prompt)}</p>"
    return f"<article class='card' tabindex='0'><div class='side'>{pictures}</div>{words}{below}</article>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "bench") -> str:
    """A table whose cells are HTML already; it scrolls within itself where it is too wide."""
    titles = "".join(f"<th>{each}</th>" for each in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='scroll' tabindex='0'><table class='{kind}'><tr>{titles}</tr>{body}</table></div>"


def section(title: str, body: str, note: str = "") -> str:
    """A part of a run's or a comparison's account; nothing where there is nothing to say."""
    told = f"<p class='note'>{escape(note)}</p>" if note else ""
    return f"<h2>{escape(title)}</h2>{told}{body}" if body else ""


def details(summary: str, text: str) -> str:
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def figure(chart: str, kind: str = "") -> str:
    return f"<figure{f' class={kind}' if kind else ''}>{chart}</figure>" if chart else ""


def value_cell(value: Any) -> str:
    """A metric of a Result: [mean, low, high], a number or a word."""
    if isinstance(value, list | tuple) and len(value) == 3:
        mean, low, high = value
        return f"{number(mean)} <small>[{number(low)}, {number(high)}]</small>"
    return number(value) if isinstance(value, int | float) or value is None else escape(str(value))


def mean_of(value: Any) -> float | None:
    """The number in a metric of a Result, None for a word."""
    if isinstance(value, list | tuple):
        value = value[0]
    return float(value) if isinstance(value, int | float) else None


def scores_title(scores: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in scores.items())


def labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(each[-count:]) for each in parts]
        if len(set(ends)) == len({*paths}):
            return ends
    return [str(path) for path in paths]
