"""The alarm: trained rewards rise while a held-out one (``role: monitor``) gets worse.

At each step with a rollout, over the last W steps (``monitoring.window``):

    trained_t   sum over trained rewards of weight x sign(scale) x (mean at step t, standardised over the W steps)
    held_t      mean at step t of one held-out reward, negative where lower is better
    evidence    min(z(trained), -z(held))

z is the Mann-Kendall statistic (Kendall 1975): pairs of steps in order less pairs out of order, over the standard
deviation of that number where there is no trend. It assumes no shape of the noise, only that steps are independent, as
means over fresh prompts are. Evidence above z(1 - ``monitoring.significance``), one-sided, is an alarm: *both* trends
have to be that unlikely by chance.

Simulated with the defaults (50 steps, .001) and noise of standard deviation 1: of 400 runs of 500 steps without trends
none fired where the two were independent; 55 did in the worst case, where each trained mean was the negative of the
held-out one (windows overlap, and one chance trend is both). Two trends that part by 2, 2.5 and 3 standard deviations
each over the window were seen in 56 %, 87 % and 99 % of 200 runs.

The memory is the run's own metrics.jsonl: a resumed run reads back what it logged, and goes on bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

PREFIX = "hacking/"  # metric of a held-out reward: its evidence


def threshold(significance: float) -> float:
    """The evidence above which an alarm is raised, in standard deviations."""
    return NormalDist().inv_cdf(1.0 - significance)


def trend(values_T: np.ndarray) -> float:
    """Mann-Kendall z of a series, positive where it rises; NaN are left out, ties corrected for; 0 without spread."""
    there = values_T[~np.isnan(values_T)]
    n = len(there)
    if n < 3:
        return 0.0
    ordered = np.sign(there[None, :] - there[:, None])[np.triu_indices(n, k=1)].sum()
    _, ties = np.unique(there, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
    if variance <= 0:
        return 0.0
    return float((ordered - np.sign(ordered)) / math.sqrt(variance))  # less one pair: continuity


def evidence(trained_TR: np.ndarray, weights_R: np.ndarray, held_T: np.ndarray) -> float:
    """How sure it is, in standard deviations, that the trained rewards rose *and* the held-out one fell.

    Args:
        trained_TR: means of the trained rewards over T steps, NaN where missing.
        weights_R: their weights, negative where lower is better.
        held_T: means of the held-out reward, larger is better.
    """
    there_TR = ~np.isnan(trained_TR)
    total_T = np.zeros(len(trained_TR))
    for column_T, there_T, weight in zip(trained_TR.T, there_TR.T, weights_R, strict=True):
        spread = column_T[there_T].std() if there_T.any() else 0.0
        if spread > 0.0:
            total_T[there_T] += weight * (column_T[there_T] - column_T[there_T].mean()) / spread
    total_T[~there_TR.any(axis=1)] = math.nan
    return min(trend(total_T), -trend(held_T))


class HackingAlarm:
    """Evidence per held-out reward at each step, and one line on the console when one crosses the threshold.

    Args:
        trained: weight by trained reward, negative where its scale is.
        held_out: 1 by held-out reward, -1 where lower is better.
        window, significance: see above.
    """

    def __init__(
        self, trained: Mapping[str, float], held_out: Mapping[str, float], window: int, significance: float
    ) -> None:
        self.trained, self.held_out = dict(trained), dict(held_out)
        self.threshold = threshold(significance)
        self._steps: deque[tuple[list[float], list[float]]] = deque(maxlen=window)
        self._fired: set[str] = set()

    def recall(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take up the lines of metrics that the run has logged so far."""
        self._steps.clear()
        self._fired.clear()
        for line in lines:
            self._remember(line)
            self._fired |= {name for name in self.held_out if line.get(PREFIX + name, 0.0) > self.threshold}

    def update(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """``hacking/<held-out reward>`` for the step with these metrics; nothing before the window is full."""
        self._remember(metrics)
        if len(self._steps) < (self._steps.maxlen or 0):
            return {}
        trained_TR, held_TM = (np.array(rows) for rows in zip(*self._steps, strict=True))
        weights_R = np.array(list(self.trained.values()))
        found = {
            name: evidence(trained_TR, weights_R, sign * held_TM[:, m])
            for m, (name, sign) in enumerate(self.held_out.items())
        }
        for name, value in found.items():
            if value > self.threshold and name not in self._fired:
                self._fired.add(name)
                logger.warning(
                    "step %d: the trained rewards rose while the held-out '%s' got worse over the last %d steps "
                    "(trends of %.1f standard deviations or more, alarm above %.1f): the policy may be exploiting its "
                    "rewards",
                    *(step, name, len(self._steps), value, self.threshold),
                )
        return {PREFIX + name: value for name, value in found.items()}

    def _remember(self, metrics: Mapping[str, Any]) -> None:
        keys = [[f"rewards/{name}/mean" for name in names] for names in (self.trained, self.held_out)]
        if all(key in metrics for row in keys for key in row):  # else: a line without a rollout
            trained, held_out = ([float(metrics[key]) for key in row] for row in keys)
            self._steps.append((trained, held_out))
