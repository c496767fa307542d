"""Fixed prompts over time: what the policy drew for the same prompts, step after step, with every score.

In the run folder:

    samples/fixed/prompts.json       [{"text", "references": ["ref_00_0.png"], "meta"}]
    samples/fixed/ref_00_0.png       reference 0 of prompt 0, 512 pixels wide and high at most
    samples/fixed/step_000025/00.png the picture for prompt 0 after 25 steps
    samples/fixed/step_000025/scores.json   [{"clip_image": 0.71, ...}], one object per prompt

A benchmark keeps its first items in the same way, a folder per row in the place of a step:

    results/pictures/<split>/prompts.json, rows.json, row_00/00.png, row_00/scores.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mentor_base.data.schema import Prompt
from mentor_base.runlog import RunFolder, write_atomically
from mentor_rl.monitors.tables import small

REFERENCE_SIDE = 512  # pixels; a user's photographs would make a report of hundreds of megabytes
Scores = Mapping[str, float | None]
Row = tuple[Sequence[Image.Image], Sequence[Scores]]  # one picture and its scores per prompt


@dataclass(frozen=True)
class FixedPrompt:
    """One fixed prompt and its reference pictures."""

    text: str
    references: tuple[Path, ...]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Gallery:
    """The fixed prompts, and for each recorded step one picture and one set of scores per prompt."""

    prompts: tuple[FixedPrompt, ...]
    pictures: Mapping[int, tuple[Path, ...]]
    scores: Mapping[int, tuple[Scores, ...]]

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted(self.pictures))


def save_prompts(run: RunFolder, prompts: Sequence[Prompt]) -> None:
    """Write the fixed prompts once, before the first step."""
    _save_prompts(_folder(run.path), prompts)


def _save_prompts(folder: Path, prompts: Sequence[Prompt]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, prompt in enumerate(prompts):
        references = [f"ref_{i:02d}_{j}.png" for j in range(len(prompt.images))]
        for name, image in zip(references, prompt.images, strict=True):
            small(image, REFERENCE_SIDE).save(folder / name)
        rows.append({"text": prompt.plain_text, "references": references, "meta": _plain(prompt.meta)})
    write_atomically(folder / "prompts.json", json.dumps(rows, indent=1))


def save_step(run: RunFolder, step: int, images: Sequence[Image.Image], scores: Sequence[Scores]) -> None:
    """Write the pictures of one step, one per fixed prompt, and their scores (None: could not score)."""
    _save_pictures(_folder(run.path) / f"step_{step:06d}", images, scores)


def save_rows(folder: Path, prompts: Sequence[Prompt], rows: Mapping[str, Row]) -> None:
    """Write what each row of a benchmark drew for these prompts."""
    _save_prompts(folder, prompts)
    for place, (images, scores) in enumerate(rows.values()):
        _save_pictures(folder / f"row_{place:02d}", images, scores)
    write_atomically(folder / "rows.json", json.dumps(list(rows), ensure_ascii=False))


def read_rows(folder: Path) -> dict[str, Gallery]:
    """Row -> its pictures as the only step of a gallery, step 0; empty where the folder holds none."""
    if not (folder / "rows.json").exists():
        return {}
    prompts = _read_prompts(folder)
    rows = {}
    for place, name in enumerate(json.loads((folder / "rows.json").read_text(encoding="utf-8"))):
        own = folder / f"row_{place:02d}"
        scores = tuple(json.loads((own / "scores.json").read_text(encoding="utf-8")))
        rows[name] = Gallery(prompts, {0: tuple(own / f"{i:02d}.png" for i in range(len(prompts)))}, {0: scores})
    return rows


def read(run: Path) -> Gallery | None:
    """The gallery of a run folder; None where the run kept none."""
    folder = _folder(run)
    if not (folder / "prompts.json").exists():
        return None
    prompts = _read_prompts(folder)
    pictures, scores = {}, {}
    for scored in sorted(folder.glob("step_*/scores.json")):
        step = int(scored.parent.name.removeprefix("step_"))
        pictures[step] = tuple(scored.parent / f"{i:02d}.png" for i in range(len(prompts)))
        scores[step] = tuple(json.loads(scored.read_text(encoding="utf-8")))
    return Gallery(prompts, pictures, scores)


def _save_pictures(folder: Path, images: Sequence[Image.Image], scores: Sequence[Scores]) -> None:
    """Pictures first: a step is there once its scores are."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i:02d}.png")
    write_atomically(folder / "scores.json", json.dumps([dict(row) for row in scores], indent=1))


def _read_prompts(folder: Path) -> tuple[FixedPrompt, ...]:
    rows = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return tuple(FixedPrompt(r["text"], tuple(folder / n for n in r["references"]), r["meta"]) for r in rows)


def _folder(run: Path) -> Path:
    return run / "samples" / "fixed"


def _plain(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Only what JSON can hold."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(meta), default=str))
    return plain
