"""Errors that a user can mend: one line that says where, what was expected, what was found and the nearest valid name.

The command line prints the line and exits with code 2; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A recipe, a row, a picture, a checkpoint or a run folder that cannot be used as given."""


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of an error line: the nearest valid name, or all of them when none is near."""
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(known)}" if known else "none is known"
