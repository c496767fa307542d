"""Score a folder of pictures with a composite, outside of any training.

The folder may have a ``prompts.jsonl``: one object per line with ``file`` and, as the rewards need them, ``prompt``,
``references`` (paths), ``subject``, ``group`` and ``metadata``. Paths are relative to that file. Without it every
picture of the folder is scored, with what rewards need of it missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mentor_rewards.composite import Composite, CompositeScores, columns_of, summary
from mentor_rewards.contract import RewardBatch, RewardError, nearest
from mentor_rewards.pixels import rgb

PROMPTS = "prompts.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class PictureRow(BaseModel):
    """One line of prompts.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    prompt: str = ""
    references: tuple[str, ...] = ()
    subject: str | None = None
    group: int | str | None = Field(None, description="pictures of one prompt share it; default: the prompt itself")
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class FolderScores:
    """What scoring a folder gave: one dict per picture (file, prompt, scores, reasons), and statistics by reward."""

    rows: list[dict[str, Any]]
    statistics: dict[str, dict[str, float]]


def score_folder(composite: Composite, folder: Path, prompts: Path | None = None) -> FolderScores:
    """Score every picture with every reward of a loaded composite.

    Args:
        folder: pictures; ``prompts`` defaults to its prompts.jsonl, if there.

    Raises:
        RewardError: an unreadable row or picture, or a reward that none of the rows has the needed columns for.
    """
    rows, base = read_rows(folder, prompts)
    batch = _batch(rows, base)
    composite.check_columns(columns_of(batch))
    scores = composite.score(batch, tolerate=True)
    statistics = {name: vars(stats) for name, stats in summary(scores, batch.group_ids).items()}
    return FolderScores(list(_lines(rows, scores)), statistics)


def read_rows(folder: Path, prompts: Path | None = None) -> tuple[list[PictureRow], Path]:
    """The rows to score, and the folder that their paths are relative to."""
    if not folder.is_dir():
        raise RewardError(f"{folder}: expected a folder of pictures")
    listing = prompts or folder / PROMPTS
    if prompts is None and not listing.is_file():
        rows = [PictureRow(file=path.name) for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
        if not rows:
            raise RewardError(f"{folder}: expected pictures ({', '.join(SUFFIXES)}), found none")
        return rows, folder
    try:
        lines = listing.read_text().splitlines()
    except OSError as error:
        raise RewardError(f"{listing}: {error.strerror}") from error
    rows = [_row(line, f"{listing}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise RewardError(f"{listing}: expected one JSON object per line, found none")
    return rows, listing.parent if prompts is None else folder


def _row(line: str, where: str) -> PictureRow:
    try:
        return PictureRow.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise RewardError(f"{where}: not JSON: {error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "row"
        if problem["type"] == "extra_forbidden":
            raise RewardError(f"{where}: unknown key '{key}'; {nearest(key, PictureRow.model_fields)}") from error
        raise RewardError(f"{where}: {key}: {problem['msg']}") from error


def _batch(rows: Sequence[PictureRow], base: Path) -> RewardBatch:
    opened: dict[str, Image.Image] = {}

    def picture(name: str) -> Image.Image:
        if name not in opened:
            opened[name] = _open(base / name)
        return opened[name]

    groups: dict[int | str, int] = {}
    for row in rows:
        groups.setdefault(_group(row), len(groups))
    return RewardBatch(
        images=[picture(row.file) for row in rows],
        prompts=[row.prompt for row in rows],
        references=[tuple(picture(name) for name in row.references) for row in rows],
        subjects=[row.subject for row in rows],
        group_ids=[groups[_group(row)] for row in rows],
        metadata=[row.metadata for row in rows],
    )


def _group(row: PictureRow) -> int | str:
    if row.group is not None:
        return row.group
    return row.prompt or row.file


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return rgb(image)
    except FileNotFoundError:
        raise RewardError(f"{path}: no such picture") from None
    except (UnidentifiedImageError, OSError) as error:
        raise RewardError(f"{path}: not a readable picture: {error}") from error


def _lines(rows: Sequence[PictureRow], scores: CompositeScores) -> Iterator[dict[str, Any]]:
    for n, row in enumerate(rows):
        reasons = {name: reasons[n] for name, reasons in scores.reasons.items() if reasons[n] is not None}
        line = {"file": row.file, "prompt": row.prompt, "scores": {name: raw[n] for name, raw in scores.raw.items()}}
        yield {**line, "reasons": reasons} if reasons else line
