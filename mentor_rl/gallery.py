"""Fixed prompts over time: what the policy drew for the same prompts, step after step, with every score.

In the run folder:

    samples/fixed/prompts.json       [{"text", "plain_text", "references": ["ref_00_0.png"], "meta"}]
    samples/fixed/ref_00_0.png       reference 0 of prompt 0
    samples/fixed/step_000025/00.png the picture for prompt 0 after 25 steps
    samples/fixed/step_000025/scores.json   [{"clip_image": 0.71, ...}], one object per prompt
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

Scores = Mapping[str, float | None]


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
    folder = _folder(run.path)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, prompt in enumerate(prompts):
        references = [f"ref_{i:02d}_{j}.png" for j in range(len(prompt.images))]
        for name, image in zip(references, prompt.images, strict=True):
            image.save(folder / name)
        rows.append({"text": prompt.plain_text, "references": references, "meta": _plain(prompt.meta)})
    write_atomically(folder / "prompts.json", json.dumps(rows, indent=1))


def save_step(run: RunFolder, step: int, images: Sequence[Image.Image], scores: Sequence[Scores]) -> None:
    """Write the pictures of one step, one per fixed prompt, and their scores (None: could not score)."""
    folder = _folder(run.path) / f"step_{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i:02d}.png")
    write_atomically(folder / "scores.json", json.dumps([dict(row) for row in scores], indent=1))


def read(run: Path) -> Gallery | None:
    """The gallery of a run folder; None where the run kept none."""
    folder = _folder(run)
    if not (folder / "prompts.json").exists():
        return None
    rows = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    prompts = tuple(FixedPrompt(r["text"], tuple(folder / n for n in r["references"]), r["meta"]) for r in rows)
    pictures, scores = {}, {}
    for scored in sorted(folder.glob("step_*/scores.json")):
        step = int(scored.parent.name.removeprefix("step_"))
        pictures[step] = tuple(scored.parent / f"{i:02d}.png" for i in range(len(prompts)))
        scores[step] = tuple(json.loads(scored.read_text(encoding="utf-8")))
    return Gallery(prompts, pictures, scores)


def _folder(run: Path) -> Path:
    return run / "samples" / "fixed"


def _plain(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Only what JSON can hold."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(meta), default=str))
    return plain
