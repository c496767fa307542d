"""Rows on disk as a world: ``source: jsonl | shards | parquet | prompts`` of a recipe.

    data: {source: jsonl, train: [a/rows.jsonl, "b/*.jsonl"], val: val.jsonl, broken_rate: 0.01}

``train`` and ``val`` are a file, a glob, or a list of them; files count in the given order, those of a glob by name.

Every source is read by row number, none as a stream: what stands at an index is then a pure function of (seed, index),
and neither the number of processes and workers nor a resume in mid-pass can change what a model sees. A stream would
have to be dealt out to a certain number of readers and be read up to the place of a resume. Remote files are fetched
first; shards are the format that is cheap to fetch, copy and read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from mentor_base.data.broken import BrokenRows
from mentor_base.data.jsonl import JsonlFile, count_jsonl, scan_jsonl
from mentor_base.data.order import shuffled
from mentor_base.data.rows import BrokenPicture, Row, RowFile
from mentor_base.data.schema import TASKS, Example, Prompt
from mentor_base.data.shards import ShardFile, count_shard, scan_shard
from mentor_base.errors import UserError, nearest
from mentor_base.settings import JsonlData, ParquetData, PromptData, RowData, ShardData

PROBED = 8
Read = TypeVar("Read")


class RowWorld:
    """A world of rows on disk; ``train`` and ``val`` are the splits it can have.

    Args:
        report: where broken rows are named; see broken.py.

    Raises:
        UserError: a file or row that cannot be used; PROBED rows without a single readable picture (a wrong folder).
    """

    def __init__(self, data: RowData, report: Path | None = None) -> None:
        files = split_files(data)
        self.splits = {split: Rows([open_file(data, path) for path in paths]) for split, paths in files.items()}
        self.broken = BrokenRows(data.broken_rate, report)
        self.tasks: tuple[str, ...] = tuple(task for task in TASKS if task in self.splits["train"].by_task)
        for rows in self.splits.values():
            _probe(rows)

    def example(self, task: str, split: str, seed: int, index: int) -> Example:
        """A row of this task. Indices walk through all rows in an order that each pass shuffles anew.

        In place of a row with a broken picture stands the next one in the order of the same pass, from whose end it
        goes on at its start; whoever draws it meets the same broken rows, and so the same replacement.

        Raises:
            UserError: a split or task that the files do not have, too many broken pictures, or prompts without answers.
        """
        return self._read(task, split, seed, index, Row.load)

    def prompt(self, task: str, split: str, seed: int, index: int) -> Prompt:
        """As ``example``, but of a row only what it asks; a broken answer is none."""
        return self._read(task, split, seed, index, Row.prompt)

    def _read(self, task: str, split: str, seed: int, index: int, read: Callable[[Row], Read]) -> Read:
        if split not in self.splits:
            hint = "; name its files under val" if split == "val" else ""
            raise UserError(f"data: expected a split of {', '.join(self.splits)}, found '{split}'{hint}")
        rows = self.splits[split]
        numbers = rows.by_task.get(task)
        if numbers is None:
            raise UserError(f"data: no row of task '{task}' in split '{split}'; {nearest(task, rows.by_task)}")
        turn, place = divmod(index, len(numbers))
        for step in range(len(numbers)):
            n = shuffled((place + step) % len(numbers), len(numbers), f"{task}/{split}/{seed}/{turn}")
            self.broken.drawn += 1
            try:
                return read(rows[numbers[n]])
            except BrokenPicture as error:
                self.broken.note(error)
        raise UserError(f"data: no row of task '{task}' in split '{split}' has readable pictures")

    def count(self, tasks: Iterable[str], split: str = "train") -> int:
        """How many rows of these tasks there are, broken ones included."""
        return sum(len(self.splits[split].by_task.get(task, ())) for task in tasks)

    def corpus(self) -> list[str]:
        """All texts of the train rows."""
        return [text for file in self.splits["train"].files for text in file.texts()]


class Rows:
    """The rows of several files as one sequence.

    Attributes:
        files: in the order in which they count.
        by_task: task -> the numbers of its rows, in order.
    """

    def __init__(self, files: Sequence[RowFile]) -> None:
        self.files = tuple(files)
        self._starts = [0, *accumulate(len(file) for file in self.files)]
        self.by_task: dict[str, array[int]] = {}
        for start, file in zip(self._starts, self.files, strict=False):
            for n, code in enumerate(file.tasks, start=start):
                self.by_task.setdefault(TASKS[code], array("q")).append(n)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, n: int) -> Row:
        k = bisect_right(self._starts, n) - 1
        return self.files[k][n - self._starts[k]]


def open_file(data: RowData, path: Path) -> RowFile:
    """One file of a source, checked."""
    if isinstance(data, ShardData):
        return ShardFile(path, data.index)
    if isinstance(data, ParquetData):
        from mentor_base.data.parquet import ParquetFile  # datasets takes seconds to import

        return ParquetFile(path, data.cache)
    return JsonlFile(path, answered=not isinstance(data, PromptData))


def scan_file(data: RowData, path: Path) -> Iterator[Row | UserError]:
    """Every row of one file in order, and in place of a row that cannot be used its error."""
    if isinstance(data, ShardData):
        return scan_shard(path)
    if isinstance(data, ParquetData):
        from mentor_base.data.parquet import scan_parquet

        return scan_parquet(path, data.cache)
    return scan_jsonl(path, answered=not isinstance(data, PromptData))


def count_rows(data: RowData, path: Path) -> int:
    """How many rows ``scan_file`` will give, for progress bars; quicker than the scan."""
    if isinstance(data, ShardData):
        return count_shard(path)
    if isinstance(data, ParquetData):
        from mentor_base.data.parquet import count_parquet

        return count_parquet(path)
    return count_jsonl(path)


def split_files(data: RowData) -> dict[str, list[Path]]:
    """The files of each split."""
    named = {"train": data.train} | ({"val": data.val} if data.val is not None else {})
    return {split: files_of(names) for split, names in named.items()}


def files_of(names: str | Sequence[str]) -> list[Path]:
    """The files of ``train`` or ``val``, globs expanded.

    Raises:
        UserError: a glob that nothing matches.
    """
    files: list[Path] = []
    for name in (names,) if isinstance(names, str) else names:
        if Path(name).exists() or not is_glob(name):
            files.append(Path(name))
            continue
        found = sorted(glob(name, recursive=True))
        if not found:
            raise UserError(f"{name}: expected at least one file, found none that matches")
        files += map(Path, found)
    return files


def is_glob(name: str) -> bool:
    """Whether a name is a pattern."""
    return any(sign in name for sign in "*?[")


SUFFIXES: Mapping[str, type[RowData]] = {".jsonl": JsonlData, ".tar": ShardData, ".parquet": ParquetData}


def data_of_path(name: str) -> RowData:
    """Settings for what a path or glob names, by the ending: rows.jsonl, shards-*.tar, a folder of *.parquet.

    Raises:
        UserError: nothing there, another ending, or a folder of several kinds.
    """
    path = Path(name)
    if not path.is_dir():
        kind = SUFFIXES.get(path.suffix)
        if kind is None:
            raise UserError(f"{name}: expected a file, glob or folder of {', '.join(SUFFIXES)}, found '{path.suffix}'")
        if not path.exists() and not is_glob(name):
            raise UserError(f"{name}: expected rows, found no such file")
        return kind(train=name)
    found = [suffix for suffix in SUFFIXES if any(path.glob(f"*{suffix}"))]
    if len(found) != 1:
        raise UserError(
            f"{name}: expected files of one kind ({', '.join(SUFFIXES)}), found {' and '.join(found) or 'none'}"
        )
    return SUFFIXES[found[0]](train=str(path / f"*{found[0]}"))


def _probe(rows: Rows) -> None:
    """Headers of a few rows spread over all: a wrong folder is found at once and not after the model is loaded."""
    count = min(PROBED, len(rows))
    errors: list[BrokenPicture] = []
    for k in range(count):
        try:
            rows[k * len(rows) // count].sizes()
        except BrokenPicture as error:
            errors.append(error)
    if len(errors) == count:
        raise UserError(f"data: none of {count} rows tried has readable pictures; the first: {errors[0]}")
