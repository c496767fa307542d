"""Pictures of the fixed prompts: before and after, over time, and runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from mentor_rl import gallery
from mentor_rl.evaluate.result import number
from mentor_rl.gallery import FixedPrompt, Gallery
from mentor_rl.plot import dot
from mentor_rl.report.curves import legend
from mentor_rl.report.markup import card, picture, scores_title, table


def before_after(shown: Gallery) -> str:
    """First and last pictures of the fixed prompts, with the reference, the prompt and every score."""
    if len(shown.steps) < 2:
        return ""
    first, last = shown.steps[0], shown.steps[-1]
    cards = []
    for i, prompt in enumerate(shown.prompts):
        before = picture(shown.pictures[first][i], f"step {first}", scores_title(shown.scores[first][i]))
        after = picture(shown.pictures[last][i], f"step {last}", scores_title(shown.scores[last][i]))
        table = _score_table(shown.scores[first][i], shown.scores[last][i])
        cards.append(card(prompt.text, _references(prompt) + before + after, table))
    return f'<div class="cards">{"".join(cards)}</div>'


def over_time(shown: Gallery) -> str:
    """A row per fixed prompt, a column per recorded step."""
    if len(shown.steps) < 3:
        return ""
    head = "".join(f"<th>{step}</th>" for step in shown.steps)
    rows = []
    for i, prompt in enumerate(shown.prompts):
        cells = "".join(
            f"<td>{picture(shown.pictures[s][i], '', scores_title(shown.scores[s][i]))}</td>" for s in shown.steps
        )
        text = f"<td class='text prompt'>{escape(prompt.text)}</td>"
        rows.append(f"<tr class='card'><td>{_references(prompt, '')}</td>{cells}{text}</tr>")
    table = f"<table class='film'><tr><th>reference</th>{head}<th>prompt</th></tr>{''.join(rows)}</table>"
    return f"<div class='scroll' tabindex='0'>{table}</div>"


def side_by_side(columns: Mapping[str, tuple[Gallery, int]], order: Sequence[str], least: int = 2) -> str:
    """One card per prompt that ``least`` columns have: reference, then each column's picture with its scores.

    Args:
        columns: name -> the pictures of a run, and the step that is shown.
        order: all names of the page's charts, so that each keeps its colour.
    """
    places_of = {name: place for place, name in enumerate(order) if name in columns}
    prompts: dict[str, FixedPrompt] = {}
    places: dict[str, dict[str, int]] = {}
    for name, (shown, _) in columns.items():
        for i, prompt in enumerate(shown.prompts):
            key = _identity(prompt, i)
            prompts.setdefault(key, prompt)
            places.setdefault(key, {})[name] = i
    cards = []
    for key, prompt in prompts.items():
        if len(places[key]) < least:
            continue
        drawn, scores = [], {}
        for name, i in places[key].items():
            shown, step = columns[name]
            scores[name] = shown.scores[step][i]
            drawn.append(picture(shown.pictures[step][i], name, scores_title(scores[name])))
        cards.append(card(prompt.text, _references(prompt) + "".join(drawn), _scores_of_columns(scores, places_of)))
    wide = f"style='--columns:{len(columns) + 1}'"
    return f'{legend(places_of)}<div class="wide cards" {wide}>{"".join(cards)}</div>' if cards else ""


def benchmark_pictures(run: Path) -> dict[str, dict[str, tuple[Gallery, int]]]:
    """Split -> row -> what a benchmark kept of its first items, as columns for ``side_by_side``."""
    folders = sorted((run / "results" / "pictures").glob("*/"))
    found = {folder.name: gallery.read_rows(folder) for folder in folders}
    return {split: {name: (shown, 0) for name, shown in rows.items()} for split, rows in found.items() if rows}


def last_pictures(run: Path) -> tuple[Gallery, int] | None:
    """The run's fixed prompts and its last recorded step; None where it kept none."""
    shown = gallery.read(run)
    return None if shown is None or not shown.steps else (shown, shown.steps[-1])


def sample_grids(run: Path) -> str:
    """The newest grids that the trainer kept, one per name."""
    newest: dict[str, Path] = {}
    for file in sorted((run / "samples").glob("step_*.png")):
        newest[file.stem.split("_", 2)[-1]] = file
    return "".join(
        f"<figure class='wide'><figcaption>{escape(file.stem)}</figcaption>{picture(file, '')}</figure>"
        for file in newest.values()
    )


def _identity(prompt: FixedPrompt, place: int) -> str:
    """Text alone does not tell prompts apart: the same may be asked with another reference."""
    return f"{prompt.text}\n{prompt.meta.get('where', place)}"


def _references(prompt: FixedPrompt, label: str = "reference") -> str:
    return "".join(picture(file, label) for file in prompt.references)


def _scores_of_columns(scores: Mapping[str, gallery.Scores], places: Mapping[str, int]) -> str:
    """A row per reward, a column per run under its sign in the legend."""
    names = list(dict.fromkeys(name for each in scores.values() for name in each))
    rows = [[escape(name), *(number(each.get(name)) for each in scores.values())] for name in names]
    signs = [f"<span title='{escape(name)}'>{dot(places[name])}</span>" for name in scores]
    return table(["", *signs], rows, "scores") if rows else ""


def _score_table(before: gallery.Scores, after: gallery.Scores) -> str:
    rows = []
    for name in after:
        old, new = before.get(name), after[name]
        better = "" if old is None or new is None or abs(new - old) < 5e-3 else ("up" if new > old else "down")
        rows.append(f"<tr><td>{escape(name)}</td><td>{number(old)}</td><td class='{better}'>{number(new)}</td></tr>")
    return f"<table class='scores'>{''.join(rows)}</table>"
