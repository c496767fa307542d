"""Rewards of a step whose pictures are drawn in parts: a part is scored in a thread while the next one is drawn.

All parts are drawn by the same weights and the update waits for all scores, so nothing is off-policy, and what is found
is what one call on all pictures finds. Whatever rewards share within a call (embeddings of references) is shared within
a part, which holds whole groups.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mentor_rewards.composite import Composite, CompositeScores

from mentor_base.errors import UserError
from mentor_rl.rollout import Rollout, reward_batch


class Scoring:
    """Scores parts of rollouts.

    Args:
        composite: loaded rewards.
        ahead: score a part from when it is added on, one after the other, in a thread; else when the scores are asked
            for.
    """

    def __init__(self, composite: Composite, ahead: bool) -> None:
        self.composite = composite
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring") if ahead else None
        self._answers: list[Callable[[], CompositeScores]] = []

    def add(self, part: Rollout, step: int) -> None:
        """The next pictures of the step."""
        work = partial(self.composite.score, reward_batch(part, step), tolerate=True)
        self._answers.append(self._thread.submit(work).result if self._thread is not None else work)

    def scores(self) -> CompositeScores:
        """Of all parts that were added since the last call, in their order, once they are there.

        Raises:
            RewardError: what a reward raised.
        """
        answers, self._answers = self._answers, []
        return self.composite.join([answer() for answer in answers])


def check_parts(composite: Composite) -> None:
    """Refuse to score in parts what depends on the other pictures of a call.

    Raises:
        UserError: names the reward.
    """
    for name, spec in composite.specs.items():
        if not spec.batch_invariant:
            raise UserError(
                f"algorithm.rollout.chunk: expected rewards that score each picture by itself, found '{name}', whose "
                "scores depend on the other pictures of a call"
            )
