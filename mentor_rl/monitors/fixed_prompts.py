"""The same prompts drawn and scored while training, without a trace in what is trained. N: prompts."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mentor_rewards.aggregate import weighted_sum
from mentor_rewards.composite import Composite
from PIL import Image

from mentor_base.data.schema import Prompt
from mentor_base.images import contact_sheet
from mentor_base.runlog import RunFolder
from mentor_rl import gallery
from mentor_rl.monitors.tables import PictureTable, rows_of
from mentor_rl.rollout import Rollout, reward_batch

logger = logging.getLogger(__name__)

SHEET_COLUMNS = 8


@contextmanager
def undisturbed_randomness() -> Iterator[None]:
    """Puts the global random states back: what is watched must not change what is trained."""
    numbers = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(numbers[0])
    np.random.set_state(numbers[1])


class FixedPrompts:
    """The same prompts scored at step 0 and every so often: the curves and the gallery of the report."""

    def __init__(
        self, prompts: Sequence[Prompt], composite: Composite, run: RunFolder, show: Callable[[PictureTable], None]
    ) -> None:
        self.prompts, self.composite, self.run, self.show = tuple(prompts), composite, run, show
        self._warned = False

    def record(self, rollout: Rollout, step: int) -> dict[str, float]:
        """Score the pictures drawn for the prompts, save them, and return ``eval/<reward>`` means.

        A reward that fails here costs its point on a curve, not the run.
        """
        remembered = self.composite.save_state()
        scores = self.composite.score(reward_batch(rollout, step), tolerate=True)
        self.composite.load_state(remembered)  # what is watched must not change what is trained
        if scores.failure is not None and not self._warned:
            self._warned = True
            logger.warning("fixed prompts at step %d: %s", step, scores.failure)
        if step == 0:
            gallery.save_prompts(self.run, self.prompts)
        gallery.save_step(self.run, step, rollout.images, _rows(scores.raw))
        self.sheet(rollout.images).save(self.run.sample_path(step, "fixed"))
        self.show(PictureTable("fixed", step, tuple(rows_of(rollout, scores.raw))))
        metrics = {"reward": _mean(weighted_sum(scores.matrix(), self.composite.weights))}
        metrics |= {name: _mean(scores.native(name)) for name in scores.raw}
        return {f"eval/{name}": value for name, value in metrics.items() if math.isfinite(value)}

    def sheet(self, images: Sequence[Image.Image]) -> Image.Image:
        """Lines of references, each with the line of pictures drawn for them below; no reference: white."""
        blank = Image.new("RGB", images[0].size, "white")
        references = [p.images[0].resize(blank.size) if p.images else blank for p in self.prompts]
        lines = []
        for start in range(0, len(images), SHEET_COLUMNS):
            lines += [references[start : start + SHEET_COLUMNS], list(images[start : start + SHEET_COLUMNS])]
        return contact_sheet(lines)


def _mean(values_N: np.ndarray) -> float:
    return float(np.nanmean(values_N)) if np.isfinite(values_N).any() else math.nan


def _rows(columns: Mapping[str, Sequence[float | None]]) -> list[dict[str, float | None]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
