"""Everything that can be said about rows before a run: what is wrong, how many there are of each task, how large.

Unlike opening a source, a check goes on after a fault, and looks at every picture: its header, or all of its pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mentor_base.data.rows import BrokenPicture, Row
from mentor_base.data.sources import count_rows, scan_file
from mentor_base.errors import UserError
from mentor_base.progress import ProgressBar
from mentor_base.settings import RowData

if TYPE_CHECKING:
    from mentor_base.processor import MentorProcessor

Size = tuple[int, int]  # width, height


@dataclass
class TaskCount:
    """What the rows of one task are.

    Attributes:
        rows: all of them, broken ones included.
        broken: those with a picture that cannot be read.
        references: reference pictures per row -> rows.
        targets: size of the target in pixels -> rows; nothing where rows are prompts alone.
    """

    rows: int = 0
    broken: int = 0
    references: Counter[int] = field(default_factory=Counter)
    targets: Counter[Size] = field(default_factory=Counter)


@dataclass
class DataCheck:
    """The findings.

    Attributes:
        tasks: task -> counts.
        faults: files and rows that cannot be used, as error lines.
        broken: pictures that cannot be read, as error lines.
    """

    tasks: dict[str, TaskCount] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Usable or broken rows; those with faults have no task and are not among them."""
        return sum(count.rows for count in self.tasks.values())

    def add(self, row: Row, decode: bool, processor: MentorProcessor | None = None) -> None:
        """Count one row and look at its pictures; with a policy's processor at the length of its prompt too."""
        if processor is not None:
            (tokens,) = processor.token_ids([row.text])
            try:
                processor.check_length(tokens, row.text, len(row.images), row.where)
            except UserError as error:
                self.faults.append(str(error))
                return
        count = self.tasks.setdefault(row.task, TaskCount())
        count.rows += 1
        count.references[len(row.images)] += 1
        try:
            if decode and row.target is None:
                row.prompt()
            elif decode:
                row.load()
            sizes = row.sizes()
        except BrokenPicture as error:
            count.broken += 1
            self.broken.append(str(error))
        else:
            if "target" in sizes:
                count.targets[sizes["target"]] += 1


def check_rows(
    data: RowData, paths: Iterable[Path], decode: bool, processor: MentorProcessor | None = None
) -> DataCheck:
    """Look at every row of the files; with ``decode`` at every pixel; with ``processor`` at the length of prompts."""
    found = DataCheck()
    files = dict(_totals(data, paths, found))
    with ProgressBar("decoding" if decode else "reading headers", sum(files.values())) as bar:
        for path in files:
            for row in _scanned(data, path):
                if isinstance(row, UserError):
                    found.faults.append(str(row))
                else:
                    found.add(row, decode, processor)
                bar.advance(note=f"{len(found.faults) + len(found.broken)} faults")
    return found


def _totals(data: RowData, paths: Iterable[Path], found: DataCheck) -> Iterator[tuple[Path, int]]:
    """The files that can be read at all, with their rows."""
    for path in paths:
        try:
            total = count_rows(data, path)
        except UserError as error:
            found.faults.append(str(error))
            continue
        if total == 0:
            found.faults.append(f"{path}: expected at least one row, found none")
        yield path, total


def _scanned(data: RowData, path: Path) -> Iterator[Row | UserError]:
    try:
        yield from scan_file(data, path)
    except UserError as error:  # a fault of the file and not of a row ends its scan
        yield error
