"""Groups that a run was trained on, in its folder:

samples/groups/step_000026/rows.jsonl   {"step", "uid", "text", "references": ["ref_0_0.png"], "picture": "0_3.png",
                                         "scores": {...}, "advantage": 0.42}, one line per picture
samples/groups/step_000026/0_3.png      picture 3 of group 0, 256 pixels wide at most
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentor_base.runlog import RunFolder, write_atomically
from mentor_rl.monitors.tables import PictureTable, small


def save_groups(run: RunFolder, table: PictureTable) -> None:
    """Write the groups of one step; the rows last."""
    folder = _folder(run.path) / f"step_{table.step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for g, (uid, group) in enumerate(itertools.groupby(table.rows, key=lambda row: row.uid)):
        rows = list(group)
        references = [f"ref_{g}_{j}.png" for j in range(len(rows[0].references))]
        for name, image in zip(references, rows[0].references, strict=True):
            small(image).save(folder / name)
        for m, row in enumerate(rows):
            small(row.picture).save(folder / f"{g}_{m}.png")
            facts = {"step": table.step, "uid": uid, "text": row.text, "references": references}
            shown = {"picture": f"{g}_{m}.png", "scores": dict(row.scores), "advantage": row.advantage}
            lines.append(json.dumps(facts | shown) + "\n")
    write_atomically(folder / "rows.jsonl", "".join(lines))


@dataclass(frozen=True)
class KeptPicture:
    """A row that was written: as tables.Row, with files in the place of pictures."""

    uid: int
    text: str
    references: tuple[Path, ...]
    picture: Path
    scores: Mapping[str, float | None]
    advantage: float


def read_groups(run: Path) -> dict[int, list[KeptPicture]]:
    """The groups that a run has kept, by step, ascending."""
    return {
        int(file.parent.name.removeprefix("step_")): [
            _kept(file.parent, json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()
        ]
        for file in sorted(_folder(run).glob("step_*/rows.jsonl"))
    }


def _kept(folder: Path, line: Mapping[str, Any]) -> KeptPicture:
    references = tuple(folder / name for name in line["references"])
    return KeptPicture(
        line["uid"], line["text"], references, folder / line["picture"], line["scores"], line["advantage"]
    )


def _folder(run: Path) -> Path:
    return run / "samples" / "groups"
