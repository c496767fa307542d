"""What a GRPO run got on its fixed prompts at one step, as scores that can be paired with another run's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mentor_base.errors import UserError
from mentor_rl import gallery
from mentor_rl.evaluate.paired import Scores


def fixed_scores(run: Path, step: int | None = None) -> tuple[int, Scores]:
    """(step, rewards in native units on each fixed prompt); default: the last step recorded.

    Raises:
        UserError: a run that kept no fixed prompts, or not at this step.
    """
    shown = gallery.read(run)
    if shown is None or not shown.steps:
        raise UserError(f"{run}: expected a GRPO run with scores of its fixed prompts, found none")
    at = shown.steps[-1] if step is None else step
    if at not in shown.scores:
        raise UserError(f"{run}: step: expected one of {', '.join(map(str, shown.steps))}, found {at}")
    rows = shown.scores[at]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: np.array([_number(row, name) for row in rows]) for name in names}
    items = tuple(f"{place}: {prompt.text}" for place, prompt in enumerate(shown.prompts))
    return at, Scores(items, columns)


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return math.nan if value is None else float(value)
