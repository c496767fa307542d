"""Training rows read and put into batches by processes of their own, ahead of the training (``stage.workers``).

A row is a pure function of (seed, index), so workers change nothing but the time. An exception that leaves a worker of
torch's DataLoader comes back as text with a traceback in it; faults of rows are lines for people, so here they travel
as values, with or without workers, and are raised where their batch would be used.

Ctrl-C, and the SIGTERM of a job's end, reach all processes of a job. A worker that died of one would take the process
that trains with it before its state is saved.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from mentor_base.errors import UserError
from mentor_base.stage_data import Row, StageDataset

FAULT = "fault"
Batch = dict[str, Any]


class CarriedRows(Dataset[Row | UserError]):
    """The rows of a stage; in place of one that cannot be read, its error."""

    def __init__(self, rows: StageDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row | UserError:
        try:
            return self.rows[index]
        except UserError as error:
            return error


class CarryingCollator:
    """Rows -> what ``collate`` makes of them, or their first error under FAULT."""

    def __init__(self, collate: Callable[[Sequence[Row]], Batch]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Row | UserError]) -> Batch:
        whole = [row for row in rows if not isinstance(row, UserError)]
        if len(whole) < len(rows):
            return {FAULT: next(row for row in rows if isinstance(row, UserError))}
        try:
            return self.collate(whole)
        except UserError as error:
            return {FAULT: error}


def outlive_signals(worker: int) -> None:
    """To be called in a new worker: it ends when the process that it reads for lets it, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def raise_fault(batch: Batch) -> None:
    """Raise the error that a batch carries, if it does."""
    if FAULT in batch:
        raise batch[FAULT]
