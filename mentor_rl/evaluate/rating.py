"""Rating sheets: pictures of a benchmark run for people to grade, and what they said.

A sheet is one HTML file with its pictures inside; it loads nothing, and it does not show which policy drew a picture.
It saves a CSV with the columns rater, picture, axis, score; ``picture`` is "<row>/<item id>_<seed>".
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from mentor_base.errors import UserError, nearest
from mentor_base.runlog import MARKER, RunFolder, write_atomically
from mentor_rl.evaluate.benchmark import Item
from mentor_rl.evaluate.picture_folder import PictureFolder
from mentor_rl.evaluate.picture_run import build_benchmark
from mentor_rl.evaluate.recipes import BENCHMARKS, PictureRecipe
from mentor_rl.evaluate.result import Result
from mentor_rl.evaluate.rubrics import CONCEPT, FOLLOWING, HIGHEST, LEVELS, STYLE, Rubric

CP, PF = "CP", "PF"
AXES = (CP, PF)
COLUMNS = ["rater", "picture", "axis", "score"]
SIDE = 448  # longest side of a picture in a sheet, pixels
MARK = "/*SHEET*/"


@dataclass(frozen=True)
class Rating:
    """One line of a CSV; ``place`` is FILE:LINE."""

    rater: str
    picture: str
    axis: str
    score: int
    place: str


def write_sheet(source: Path, out: Path, count: int = 50, seed: int = 0) -> int:
    """A sheet with ``count`` pictures of a run, drawn evenly over its rows; returns how many there are.

    Args:
        source: the run folder of a benchmark on pictures, or a result in it.

    Raises:
        UserError: no such run, or pictures that are not there.
    """
    recipe, run = _recipe_of(source)
    items = build_benchmark(recipe).items()[: recipe.limit]
    folders = {name: run / "pictures" / name for name in recipe.policies} | {
        n: Path(p) for n, p in recipe.images.items()
    }
    cases = _chosen(items, list(folders), recipe.seeds, count, seed)
    shown = [_case(row, item, s, PictureFolder.of(folders[row], [item], [s])) for row, item, s in cases]
    rubrics = {rubric.name: _help(rubric) for rubric in (CONCEPT, STYLE, FOLLOWING)}
    data = {"title": run.name, "benchmark": recipe.benchmark, "levels": LEVELS, "rubrics": rubrics, "cases": shown}
    text = resources.files("mentor_rl.evaluate").joinpath("rating_sheet.html").read_text(encoding="utf-8")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text.replace(MARK, json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")))
    return len(shown)


def read_ratings(files: Sequence[Path]) -> list[Rating]:
    """All ratings of all files; lines without a score are left out.

    Raises:
        UserError: not such a CSV, no whole number from 0 to 4, or one rating given twice.
    """
    found: dict[tuple[str, str, str], Rating] = {}
    for file in files:
        for rating in _lines(file):
            key = (rating.rater, rating.picture, rating.axis)
            if key in found:
                raise UserError(
                    f"{rating.place}: {rating.rater} rated {rating.axis} of {rating.picture} before, in "
                    f"{found[key].place}; expected one rating each (do two people share a name?)"
                )
            found[key] = rating
    if not found:
        raise UserError(f"{', '.join(map(str, files))}: expected ratings, found none")
    return list(found.values())


def ratings_matrix(ratings: Sequence[Rating], axis: str) -> np.ndarray:
    """One axis as [U, R]: a row per picture, a column per rater, NaN without a rating."""
    chosen = [rating for rating in ratings if rating.axis == axis]
    pictures = {name: row for row, name in enumerate(dict.fromkeys(r.picture for r in chosen))}
    raters = {name: column for column, name in enumerate(dict.fromkeys(r.rater for r in chosen))}
    matrix_UR = np.full((len(pictures), len(raters)), np.nan)
    for rating in chosen:
        matrix_UR[pictures[rating.picture], raters[rating.rater]] = rating.score
    return matrix_UR


def by_picture(ratings: Sequence[Rating], axis: str) -> dict[str, list[int]]:
    """The scores of each picture."""
    out: dict[str, list[int]] = {}
    for rating in ratings:
        if rating.axis == axis:
            out.setdefault(rating.picture, []).append(rating.score)
    return out


def judge_scores(result: Result, axis: str) -> dict[str, int]:
    """The judge's whole number for each picture of a result, the (lower) median over its passes.

    Raises:
        UserError: a result without such scores.
    """
    out: dict[str, int] = {}
    for row, columns in result.per_item.items():
        if f"{axis} passes" not in columns:
            raise UserError(
                f"{result.benchmark}: expected a judge's scores of each picture ({axis} passes), found none"
            )
        for item, seed, passes in zip(columns["item"], columns["seed"], columns[f"{axis} passes"], strict=True):
            out[f"{row}/{item}_{seed}"] = sorted(passes)[(len(passes) - 1) // 2]
    return out


def _recipe_of(source: Path) -> tuple[PictureRecipe, Path]:
    run = source.parent.parent if source.suffix == ".json" else source
    marker = run / MARKER
    if not marker.is_file():
        raise UserError(f"{source}: expected the run folder of a benchmark, or a result in one; found no {marker}")
    held = RunFolder(run).recipe()
    kind = BENCHMARKS.get(str(held.get("benchmark")))
    if kind is None or not issubclass(kind, PictureRecipe):
        found = held.get("benchmark") or held.get("kind")
        raise UserError(f"{run}: expected a benchmark on pictures, found '{found}'")
    try:
        return kind.model_validate(held), run
    except ValidationError as error:
        raise UserError(f"{marker}: not a recipe of this edition: {error.errors()[0]['msg']}") from error


def _chosen(
    items: Sequence[Item], rows: Sequence[str], seeds: Sequence[int], count: int, seed: int
) -> list[tuple[str, Item, int]]:
    """The first ``count`` of all (item, row, seed) in a drawn order, rows taking turns."""
    order = random.Random(seed)
    by_row = {row: [(row, item, s) for item in items for s in seeds] for row in rows}
    for pairs in by_row.values():
        order.shuffle(pairs)
    each = -(-count // len(rows))
    turns = [pair for place in range(each) for row in rows for pair in by_row[row][place : place + 1]]
    chosen = turns[:count]
    order.shuffle(chosen)
    return chosen


def _case(row: str, item: Item, seed: int, folder: PictureFolder) -> dict[str, Any]:
    prompt = item.prompt()
    style = item.facts.get("category") == "style"
    axes = [{"key": CP, "rubric": (STYLE if style else CONCEPT).name}] if prompt.images else []
    axes.append({"key": PF, "rubric": FOLLOWING.name})
    return {
        "picture": f"{row}/{item.id}_{seed}",
        "text": item.facts.get("prompt", prompt.plain_text),
        "references": [_embedded(image) for image in prompt.images],
        "image": _embedded(folder.open(item.id, seed)),
        "axes": axes,
    }


def _embedded(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    packed = io.BytesIO()
    small.save(packed, format="PNG" if max(small.size) < 128 else "JPEG", quality=90)
    kind = "png" if max(small.size) < 128 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(packed.getvalue()).decode()}"


def _help(rubric: Rubric) -> Mapping[str, Any]:
    return {"task": rubric.task, "criteria": rubric.criteria, "levels": rubric.levels}


def _lines(file: Path) -> Iterator[Rating]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            if list(reader.fieldnames or ()) != COLUMNS:
                found = ", ".join(reader.fieldnames or ()) or "none"
                raise UserError(f"{file}: expected the columns {', '.join(COLUMNS)}, found {found}")
            for row in reader:
                rating = _rating(row, f"{file}:{reader.line_num}")
                if rating is not None:
                    yield rating
    except OSError as error:
        raise UserError(f"{file}: expected a CSV of ratings: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: expected a CSV of ratings in UTF-8: {error}") from error


def _rating(row: Mapping[str, Any], place: str) -> Rating | None:
    if any(row.get(column) is None for column in COLUMNS) or None in row:
        raise UserError(f"{place}: expected {len(COLUMNS)} cells")
    rater, picture, axis, score = (row[column].strip() for column in COLUMNS)
    if axis not in AXES:
        raise UserError(f"{place}: axis: unknown '{axis}'; {nearest(axis, AXES)}")
    if not rater or not picture:
        raise UserError(f"{place}: expected a rater and a picture")
    if not score:
        return None
    if score not in map(str, range(HIGHEST + 1)):
        raise UserError(f"{place}: score: expected a whole number from 0 to {HIGHEST}, found '{score}'")
    return Rating(rater, picture, axis, int(score), place)
