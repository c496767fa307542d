"""Where the tensors of a checkpoint and those that a model has differ: one error line with the first differences."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mentor_base.errors import UserError

SHOWN = 3  # differences in an error


@dataclass
class Misfit:
    """Attributes: misshapen, unknown, missing: a line each; of the unknown ones beyond SHOWN the name alone."""

    misshapen: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def note_shape(self, key: str, expected: Sequence[int], found: Sequence[int]) -> None:
        self.misshapen.append(f"'{key}': expected shape {tuple(expected)}, found {tuple(found)}")

    def note_names(self, surplus: Sequence[str], absent: Sequence[str]) -> None:
        """Tensors that the model does not know, with a missing one of nearly that name, and missing ones."""
        for key in surplus[:SHOWN]:
            near = difflib.get_close_matches(key, absent, n=1)
            self.unknown.append(f"'{key}': unknown" + "".join(f"; did you mean '{name}'?" for name in near))
        self.unknown += surplus[SHOWN:]
        self.missing += [f"'{key}': missing" for key in absent]

    def check(self, where: str, looks: Callable[[], str]) -> None:
        """Raise one line with the first SHOWN differences, if there are any; ``looks`` ends it."""
        faults = [*self.misshapen, *self.unknown, *self.missing]
        if not faults:
            return
        counts = {"misshapen": self.misshapen, "unknown": self.unknown, "missing": self.missing}
        told = ", ".join(f"{len(found)} {kind}" for kind, found in counts.items() if found)
        more = "; ..." if len(faults) > SHOWN else ""
        raise UserError(f"{where}: tensors do not fit ({told}): {'; '.join(faults[:SHOWN])}{more}; {looks()}")
