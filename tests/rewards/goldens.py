"""The scripts of tools/golden as modules: inputs and expected numbers of upstream's packages; and random weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

from mentor_rewards.contract import RewardBatch

FOLDER = Path(__file__).parents[2] / "tools" / "golden"


def liked(factory: Callable[[], Any], batch: RewardBatch) -> RewardBatch:
    """The batch with a distinct prompt for each picture, given out as the reward likes best.

    Random weights know nothing of prompts; so what they like is what is right, and the contract's prompt probe holds.
    """
    n = len(batch)
    prompts = ["a red disc", "the blue fox", "a green square on the left", "a dog"][:n]
    reward = factory()
    reward.load("cpu", "float32")
    scores_PN = [reward.score(replace(batch, prompts=[prompt] * n, shared={})).scores for prompt in prompts]
    reward.unload()
    best = max(permutations(range(n)), key=lambda places: sum(scores_PN[p][row] for row, p in enumerate(places)))
    return replace(batch, prompts=[prompts[p] for p in best])


def golden(name: str) -> ModuleType:
    """tools/golden/<name>.py; importing it needs no upstream package."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # at the end: a script must not hide a package of its name
    return importlib.import_module(name)
