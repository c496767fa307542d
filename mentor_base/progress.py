"""Progress with time left: a bar on a terminal, a line every half minute in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_EVERY_SECONDS = 30.0


class ProgressBar:
    """``with ProgressBar("stage 1", total=2000) as bar: bar.advance(note="loss 3.21")``. Writes to stderr."""

    def __init__(self, label: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self.label, self.total, self.done, self.quiet = label, total, done, quiet
        self._start, self._started_at, self._last_line = time.monotonic(), done, time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self.quiet and error is None:
            self._line("")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count finished steps; ``note`` is shown behind the bar."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, note=note)
        elif not self.quiet and time.monotonic() - self._last_line > LOG_EVERY_SECONDS:
            self._line(note)

    def _line(self, note: str) -> None:
        self._last_line = time.monotonic()
        elapsed = self._last_line - self._start
        fresh = self.done - self._started_at
        left = f"{elapsed / fresh * (self.total - self.done):.0f} s left" if fresh else "time left unknown"
        print(f"{self.label}: {self.done}/{self.total}, {elapsed:.0f} s, {left} {note}", file=sys.stderr, flush=True)
