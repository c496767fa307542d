"""Broken pictures while rows are drawn: counted, named once in a report, and too many of them stop the run.

The report has JSON lines, ``{"row": "rows.jsonl:12", "picture": "target", "reason": "..."}`` a line. Every process and
worker counts what it drew itself and appends to the same file. The count starts anew when a run goes on.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from mentor_base.data.rows import BrokenPicture
from mentor_base.errors import UserError

logger = logging.getLogger(__name__)

FEWEST = 10  # broken rows before a rate is worth anything


class BrokenRows:
    """The count, and the report at ``report`` (none without).

    Args:
        rate: the share of broken rows among the drawn ones above which ``note`` stops the run, once FEWEST were met.
            At 0 the first broken row does.
    """

    def __init__(self, rate: float, report: Path | None = None) -> None:
        self.rate, self.report = rate, report
        self.drawn = self.met = 0
        self._named: set[str] | None = None

    def note(self, error: BrokenPicture) -> None:
        """Count and name one broken row.

        Raises:
            UserError: when there are too many.
        """
        self.met += 1
        if self.rate == 0:
            raise error
        if self._named is None:  # what other processes, or this run before a stop, have named already
            self._named = {line["row"] for line in read_report(self.report)} if self.report is not None else set()
        if error.row not in self._named:
            if not self._named:
                named = f"; {self.report} names it and others that follow" if self.report is not None else ""
                logger.warning("%s; its row is skipped%s", error, named)
            self._named.add(error.row)
            self._write(error)
        if self.met >= FEWEST and self.met > self.rate * self.drawn:
            report = f", named in {self.report}" if self.report is not None else ""
            raise UserError(
                f"data: expected at most {self.rate:.2%} of the rows with broken pictures (broken_rate), found "
                f"{self.met} of {self.drawn}{report}; the last: {error}"
            ) from error

    def _write(self, error: BrokenPicture) -> None:
        if self.report is None:
            return
        line = json.dumps({"row": error.row, "picture": error.picture, "reason": error.reason}) + "\n"
        with self.report.open("ab", buffering=0) as file:  # one write, appended: workers do not cut each other's lines
            file.write(line.encode())


def read_report(report: Path) -> list[dict[str, str]]:
    """The whole lines of a report, each row once; none where nothing was broken."""
    if not report.exists():
        return []
    named: dict[str, dict[str, str]] = {}
    for text in report.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # cut short by a full disk, and perhaps followed by the next one
        named[line["row"]] = line
    return list(named.values())
