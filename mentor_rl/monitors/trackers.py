"""Tables of pictures as the trackers take them: wandb and trackio as tables, TensorBoard as a sheet and a text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from mentor_base.images import contact_sheet
from mentor_base.runlog import RunFolder
from mentor_rl.monitors.group_files import save_groups
from mentor_rl.monitors.tables import PictureTable, Row, small

STEP = "train/global_step"  # transformers' x-axis in wandb and trackio


class TableWriter:
    """Writes a table to the run folder and to the trackers among a trainer's callbacks; the main process only."""

    def __init__(self, run: RunFolder, callbacks: Sequence[TrainerCallback]) -> None:
        self.run, self.callbacks = run, tuple(callbacks)

    def __call__(self, table: PictureTable) -> None:
        if table.name == "groups":  # fixed prompts are in the gallery
            save_groups(self.run, table)
        for callback in self.callbacks:
            if isinstance(callback, WandbCallback):
                to_wandb(table)
            elif isinstance(callback, TensorBoardCallback):
                to_tensorboard(table, callback.tb_writer)
            elif isinstance(callback, TrackioCallback):
                to_trackio(table)


def to_wandb(table: PictureTable) -> None:
    """A wandb.Table under ``pictures/<name>``."""
    import wandb

    filled = wandb.Table(columns=columns(table), data=[_cells(table, row, wandb.Image) for row in table.rows])
    wandb.log({f"pictures/{table.name}": filled, STEP: table.step})


def to_trackio(table: PictureTable) -> None:
    """A trackio.Table under ``pictures/<name>``."""
    import pandas
    import trackio

    cells = [_cells(table, row, trackio.Image) for row in table.rows]
    filled = trackio.Table(dataframe=pandas.DataFrame(cells, columns=columns(table)))
    trackio.log({f"pictures/{table.name}": filled, STEP: table.step})


def to_tensorboard(table: PictureTable, writer: Any) -> None:
    """A contact sheet with captions, and all numbers as a Markdown table, under ``pictures/<name>``."""
    writer.add_image(f"pictures/{table.name}", np.asarray(sheet(table)), table.step, dataformats="HWC")
    head = [name for name in columns(table) if name not in ("references", "picture")]
    lines = [head, ["---"] * len(head)]
    for row in table.rows:
        numbers = [_number(value) for value in (*row.scores.values(), row.advantage)]
        lines.append([str(table.step), row.text.replace("|", "\\|"), *numbers])
    writer.add_text(f"pictures/{table.name}", "\n".join(f"| {' | '.join(line)} |" for line in lines), table.step)


def columns(table: PictureTable) -> list[str]:
    """Heads of the columns."""
    return ["step", "prompt", "references", "picture", *table.rewards, "advantage"]


def sheet(table: PictureTable) -> Image.Image:
    """A line per prompt: its references, then its pictures; the prompt as the caption."""
    lines, captions = [], []
    for _, group in itertools.groupby(table.rows, key=lambda row: row.uid):
        rows = list(group)
        lines.append([small(image) for image in (*rows[0].references, *(row.picture for row in rows))])
        captions.append(rows[0].text)
    return contact_sheet(lines, captions, scale=1)


def _cells(table: PictureTable, row: Row, image: Callable[[Image.Image], Any]) -> list[Any]:
    references = image(contact_sheet([[small(each) for each in row.references]], scale=1)) if row.references else None
    return [table.step, row.text, references, image(small(row.picture)), *row.scores.values(), row.advantage]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
