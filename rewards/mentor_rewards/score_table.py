"""The table of scores that a scoring command writes: grows row by row, survives a kill, goes on where it was.

A CSV grows in place. A parquet cannot: its rows stand in ``NAME.part.csv`` until all are there. Beside the table,
``NAME.json`` says which rewards made it; a table of other rewards or of other rows is refused, not mixed.

Columns: ``row`` (from 0), ``file``, ``prompt``, and for every reward its raw score and ``REWARD.reason``: why a score
is missing.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mentor_rewards.contract import RewardError
from mentor_rewards.score_rows import PictureRow

SUFFIXES = (".csv", ".parquet")


class ScoreTable:
    """Raw scores and reasons by reward, so far; every list has as many entries as there are rows done.

    Args:
        out: the file, or None: rows go to ``stream`` and nothing is resumed.
        rewards: what identifies each reward: a resumed table has to be made by the same.
        rows: the pictures to score; the rows of a resumed table have to be the first of them.
    """

    def __init__(
        self,
        out: Path | None,
        rewards: Mapping[str, Mapping[str, Any]],
        rows: Sequence[PictureRow],
        stream: TextIO | None = None,
    ) -> None:
        self.out, self._pictures = out, rows
        self._header = ["row", "file", "prompt", *(part for name in rewards for part in (name, f"{name}.reason"))]
        self.raw: dict[str, list[float | None]] = {name: [] for name in rewards}
        self.reasons: dict[str, list[str | None]] = {name: [] for name in rewards}
        self._file: TextIO | None = stream
        self._has_header = False
        if out is not None:
            if out.suffix not in SUFFIXES:
                raise RewardError(f"{out}: expected a name that ends in {' or '.join(SUFFIXES)}")
            if not out.parent.is_dir():
                raise RewardError(f"{out}: expected a folder at {out.parent}, found none")
            self._check_rewards(out.with_name(f"{out.name}.json"), rewards)
            self._file = self._resume(out)
        if not self._has_header:
            self._write([self._header])

    def __len__(self) -> int:
        return len(next(iter(self.raw.values())))

    def append(self, raw: Mapping[str, Sequence[float | None]], reasons: Mapping[str, Sequence[str | None]]) -> None:
        """Write the next rows, at once."""
        start = len(self)
        for name in self.raw:
            self.raw[name].extend(raw[name])
            self.reasons[name].extend(reasons[name])
        self._write([self._cells(row) for row in range(start, len(self))])

    def keep(self, count: int) -> None:
        """Forget all rows but the first ``count``."""
        if count >= len(self) or self.out is None:
            return
        for columns in (self.raw, self.reasons):
            for values in columns.values():
                del values[count:]
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._write([self._header, *(self._cells(row) for row in range(len(self)))])

    def finish(self) -> None:
        """Close the file; a parquet is written now."""
        if self.out is None or self._file is None:
            return
        self._file.close()
        if self.out.suffix == ".parquet":
            self._write_parquet(self.out)
            _journal(self.out).unlink()

    def _cells(self, row: int) -> list[Any]:
        picture = self._pictures[row]
        cells: list[Any] = [row, picture.file, picture.prompt]
        for name in self.raw:
            cells += [self.raw[name][row], self.reasons[name][row]]
        return cells

    def _write(self, rows: Sequence[Sequence[Any]]) -> None:
        assert self._file is not None
        self._file.write("".join(map(_csv_row, rows)))  # one write, so that a kill cuts at most one row
        self._file.flush()

    def _check_rewards(self, file: Path, rewards: Mapping[str, Mapping[str, Any]]) -> None:
        now = json.loads(json.dumps(rewards, default=str))
        if file.exists() and (_journal(self.out).exists() or (self.out is not None and self.out.exists())):
            before = json.loads(file.read_text(encoding="utf-8"))
            for name in {**before, **now}:
                if before.get(name) != now.get(name):
                    raise RewardError(
                        f"{self.out}: scored with another '{name}' ({before.get(name)}, now {now.get(name)}); "
                        "choose another --out"
                    )
        temporary = file.with_name(f".{file.name}.new")  # a kill in the middle must leave one that can be read
        temporary.write_text(json.dumps(now, indent=1), encoding="utf-8")
        temporary.replace(file)

    def _resume(self, out: Path) -> TextIO:
        """Take over the whole rows of an earlier call, cut off a half-written one, and open the file behind them."""
        file = _journal(out)
        if out.suffix == ".parquet" and out.exists() and not file.exists():
            file.write_text(_parquet_as_csv(out), encoding="utf-8")
        content = file.read_bytes() if file.exists() else b""
        whole = content[: _whole_rows(content)]
        try:
            rows = list(csv.reader(io.StringIO(whole.decode("utf-8"), newline="")))
        except (UnicodeDecodeError, csv.Error) as error:
            raise _another_file(file) from error
        if not rows and content and not ",".join(self._header).encode().startswith(content.strip()):
            raise _another_file(file)
        for number, cells in enumerate(rows):
            self._take(cells, number, f"{file}:{number + 1}")
        self._has_header = bool(rows)
        if len(whole) < len(content):
            with file.open("r+b") as end:
                end.truncate(len(whole))
        opened = file.open("r+" if file.exists() else "w+", encoding="utf-8", newline="")
        opened.seek(0, io.SEEK_END)
        return opened

    def _take(self, cells: Sequence[str], number: int, place: str) -> None:
        if number == 0:
            if list(cells) != self._header:
                raise RewardError(
                    f"{place}: expected columns {','.join(self._header)}, found {','.join(cells)}; choose another --out"
                )
            return
        row = number - 1
        found = dict(zip(self._header, cells, strict=False))
        if row >= len(self._pictures):
            raise RewardError(f"{place}: row {row}: the pictures are {len(self._pictures)} only; choose another --out")
        picture = self._pictures[row]
        if len(cells) != len(self._header) or [found["row"], found["file"]] != [str(row), picture.file]:
            raise RewardError(f"{place}: expected row {row} of '{picture.file}', found {cells}; choose another --out")
        if found["prompt"] != picture.prompt:
            raise RewardError(
                f"{place}: '{picture.file}' was scored for '{found['prompt']}', now it is '{picture.prompt}'; "
                "choose another --out"
            )
        for name in self.raw:
            self.raw[name].append(float(found[name]) if found[name] else None)
            self.reasons[name].append(found[f"{name}.reason"] or None)

    def _write_parquet(self, out: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        columns: dict[str, Any] = {
            "row": pyarrow.array(range(len(self)), pyarrow.int64()),
            "file": pyarrow.array([row.file for row in self._pictures[: len(self)]], pyarrow.string()),
            "prompt": pyarrow.array([row.prompt for row in self._pictures[: len(self)]], pyarrow.string()),
        }
        for name in self.raw:
            columns[name] = pyarrow.array(self.raw[name], pyarrow.float64())
            columns[f"{name}.reason"] = pyarrow.array(self.reasons[name], pyarrow.string())
        temporary = out.with_name(f".{out.name}.new")
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
        temporary.replace(out)


def _another_file(file: Path) -> RewardError:
    return RewardError(f"{file}: expected a table of scores, found another file; choose another --out")


def _journal(out: Path | None) -> Path:
    """The CSV that grows while the pictures are scored."""
    assert out is not None
    return out if out.suffix == ".csv" else out.with_name(f"{out.name}.part.csv")


def _csv_row(cells: Sequence[Any]) -> str:
    """A line of the table. Python's csv quotes a carriage return only where it ends lines with one."""
    line = io.StringIO()
    csv.writer(line).writerow([float(cell) if isinstance(cell, float) else cell for cell in cells])
    return line.getvalue().removesuffix("\r\n") + "\n"


def _whole_rows(content: bytes) -> int:
    """Bytes up to the end of the last whole row: a line break outside of quotes."""
    end, quoted = 0, False
    for position, byte in enumerate(content):
        if byte == ord('"'):
            quoted = not quoted
        elif byte == ord("\n") and not quoted:
            end = position + 1
    return end


def _parquet_as_csv(file: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowInvalid as error:
        raise _another_file(file) from error
    return "".join(map(_csv_row, [table.column_names, *(list(row.values()) for row in table.to_pylist())]))
