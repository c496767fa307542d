"""What is watched of the rollouts of a run, over all processes, until the next line of metrics takes it. Free of trl.

Shapes: N samples of this process, R trained rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from mentor_rewards.composite import Composite, CompositeScores

from mentor_rl.monitors.copying import copies, copy_metrics
from mentor_rl.monitors.groups import flat_groups, picture_diversity, reward_metrics, thumbnails, token_diversity
from mentor_rl.monitors.hacking import HackingAlarm
from mentor_rl.monitors.tables import GroupTable, PictureTable
from mentor_rl.rollout import Rollout


class RolloutWatch:
    """Metrics of the newest rollout: rewards, groups, diversity, copies, evidence of hacking.

    Args:
        composite: loaded rewards.
        alarm: sees the metrics of each step, on the main process.
        copy_thresholds: by task; see copying.py.
        groups: which groups are shown as a table; None: none.
        show: takes a table, on the main process.
    """

    def __init__(
        self,
        composite: Composite,
        alarm: HackingAlarm,
        copy_thresholds: Mapping[str, float],
        groups: GroupTable | None,
        show: Callable[[PictureTable], None],
    ) -> None:
        self.composite, self.alarm, self.copy_thresholds = composite, alarm, copy_thresholds
        self.groups, self.show = groups, show
        self.gathered: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.cpu  # the trainer gathers all processes'
        self._scores: CompositeScores | None = None
        self._pending: dict[str, float] = {}

    def record(self, rollout: Rollout, scores: CompositeScores, uids: Sequence[int], step: int, main: bool) -> None:
        """Watch a rollout before the update of ``step``.

        Args:
            rollout: this process' own.
            scores, uids: of all processes.
            main: whether this is the main process.
        """
        self._scores = scores
        self._pending |= reward_metrics(scores, self.composite.weights, uids)
        self._pending["flat_groups"] = flat_groups(scores.matrix(), uids)
        self._watch_pictures(rollout, uids)
        if main:
            self._pending |= self.alarm.update(step, self._pending)

    def show_groups(
        self, rollout: Rollout, advantages_N: torch.Tensor, done: int, inner_iterations: int, main: bool
    ) -> None:
        """Show groups of the newest rollout, when it is time.

        Args:
            rollout, advantages_N: this process' own.
            done: optimizer steps before this rollout.
        """
        if main and self.groups is not None and self.groups.due(done, inner_iterations):
            assert self._scores is not None
            self.show(self.groups.of(rollout, self._scores, advantages_N, done + 1))

    def add(self, metrics: Mapping[str, float]) -> None:
        """Metrics for the next line that come from elsewhere."""
        self._pending |= metrics

    def take(self) -> dict[str, float]:
        """All metrics since the last call."""
        taken, self._pending = self._pending, {}
        return taken

    def _watch_pictures(self, rollout: Rollout, uids: Sequence[int]) -> None:
        """Diversity within groups and copies of references."""
        small_ND = thumbnails(rollout.images)
        copied = np.stack(copies(small_ND, rollout.prompts, self.copy_thresholds))
        small_ND, copied_N2 = (self.gathered(torch.from_numpy(rows)).numpy() for rows in (small_ND, copied.T))
        self._pending["diversity"] = token_diversity(self.gathered(rollout.tokens_NL), uids)
        self._pending["diversity_pixels"] = picture_diversity(small_ND, uids)
        self._pending |= copy_metrics(*copied_N2.T)
