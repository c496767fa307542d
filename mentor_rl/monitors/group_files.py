"""Groups that a run was trained on, in its folder:

samples/groups/step_000026/rows.jsonl   {"step", "uid", "text", "references": ["ref_0_0.png"], "picture": "0_3.png",
                                         "scores": {...}, "advantage": 0.42}, one line per picture
samples/groups/step_000026/0_3.png      picture 3 of group 0, 256 pixels wide at most
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from PIL import Image

from mentor_base.runlog import RunFolder, write_atomically
from mentor_rl.monitors.tables import PictureTable, Row, small


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


def read_groups(run: Path) -> list[PictureTable]:
    """The groups that a run has kept, by step."""
    tables = []
    for file in sorted(_folder(run).glob("step_*/rows.jsonl")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows = tuple(
            Row(
                line["uid"],
                line["text"],
                tuple(_opened(file.parent / name) for name in line["references"]),
                _opened(file.parent / line["picture"]),
                line["scores"],
                line["advantage"],
            )
            for line in lines
        )
        tables.append(PictureTable("groups", lines[0]["step"], rows))
    return tables


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _folder(run: Path) -> Path:
    return run / "samples" / "groups"
