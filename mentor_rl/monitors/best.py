"""The best policy so far by a metric of the fixed prompts, kept in RUN/best (recipe: ``monitoring.best``).

    best/            loads like any checkpoint; without optimizer
    best/best.json   {"step": 75, "metric": "eval/reward", "mode": "max", "value": 0.61, "of": 4}

Off by default: a run's result is its last policy. The fixed prompts are few (16) and each is drawn once, so their mean
is noisy, and the best of many noisy means is too good: by two standard errors where 25 means are of equal policies.
Such a choice pays where a run falls apart at its end, not to tell good policies from each other; take the numbers that
you report from other prompts.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mentor_base.runlog import RunFolder, flush, write_atomically
from mentor_rl.recipe import Best

FOLDER = "best"
FACTS = "best.json"


class BestPolicy:
    """Remembers the best value, on the disk: a resumed run goes on with it. For the main process.

    ``of`` counts the evaluations it was chosen from, those that a resumed run repeats included.
    """

    def __init__(self, run: RunFolder, settings: Best) -> None:
        self.folder, self.settings = run.path / FOLDER, settings
        self._old = run.path / f".{FOLDER}.old"
        self._staging = run.path / f".{FOLDER}.partial"
        if self._old.exists() and not self.folder.exists():  # killed between two renames
            self._old.rename(self.folder)
        held = best_of(run.path)
        self._value = float(held["value"]) if held else None
        self._seen = int(held["of"]) if held else 0

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether these are better than all before; a metric that is missing is not."""
        value = metrics.get(self.settings.metric, math.nan)
        self._seen += 1
        if not math.isfinite(value):
            return False
        return self._value is None or (value > self._value if self.settings.mode == "max" else value < self._value)

    @contextmanager
    def writing(self, step: int, metrics: Mapping[str, float]) -> Iterator[Path]:
        """A folder to fill with the policy of this step, which then takes the place of the one before."""
        shutil.rmtree(self._staging, ignore_errors=True)
        yield self._staging
        self._value = metrics[self.settings.metric]
        facts = {"step": step, **self.settings.model_dump(), "value": self._value, "of": self._seen}
        write_atomically(self._staging / FACTS, json.dumps(facts, indent=1) + "\n")
        flush(self._staging)
        shutil.rmtree(self._old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(self._old)
        self._staging.rename(self.folder)
        shutil.rmtree(self._old, ignore_errors=True)


def best_of(run: Path) -> dict[str, Any] | None:
    """What best.json of a run folder says; None where the run keeps no best policy."""
    file = run / FOLDER / FACTS
    facts: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return facts
