"""Requests of several trainers for one reward, scored together: one call of the model instead of many small ones.

A lane serves one reward. While its device is busy, requests queue; then the first one takes along all that fit. When
nothing is queued yet, a request waits ``max_wait`` seconds for company. Lanes of one device take turns.

Scored together are only requests with the same ``step``, of rewards that declare ``batch_invariant``. The pictures that
stand beside a picture can still change its score in the last bits (matrix products of another size), as they do with
any other batch size. A request whose neighbour makes the reward fail is scored again without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardBatch, RewardError, RewardOutput, RewardSpec, error_line


@dataclass(frozen=True)
class Batching:
    """How long a request waits for others (seconds), and how many pictures are scored together."""

    max_wait: float = 0.005
    max_pictures: int = 64


@dataclass(frozen=True)
class _Job:
    batch: RewardBatch
    answer: asyncio.Future[RewardOutput]


class Lane:
    """The queue of one reward.

    Args:
        composite: loaded, with this one reward.
        device: held while the reward scores.

    Attributes:
        calls, pictures: made and scored so far.
    """

    def __init__(self, composite: Composite, device: asyncio.Lock, batching: Batching) -> None:
        (self.name,) = composite.names
        self.calls = self.pictures = 0
        self._composite, self._device, self._batching = composite, device, batching
        self._queue: deque[_Job] = deque()
        self._arrived, self._full = asyncio.Event(), asyncio.Event()

    @property
    def spec(self) -> RewardSpec:
        """Of the loaded reward."""
        return self._composite.specs[self.name]

    @property
    def queued(self) -> int:
        """Pictures that wait."""
        return sum(len(job.batch) for job in self._queue)

    def submit(self, batch: RewardBatch) -> asyncio.Future[RewardOutput]:
        """Queue a batch. The answer raises RewardError for a fault of the reward; cancel it to give the place up."""
        job = _Job(batch, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self._arrived.set()
        if self.queued >= self._batching.max_pictures:
            self._full.set()
        return job.answer

    async def run(self) -> None:
        """Score what comes, until cancelled."""
        while True:
            await self._arrived.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._batching.max_wait)
            async with self._device:
                jobs = self._take()
                if jobs:
                    self._settle(jobs, await asyncio.to_thread(self._score, [job.batch for job in jobs]))

    def _take(self) -> list[_Job]:
        """The first job and those that can go with it; the others keep their order."""
        jobs: list[_Job] = []
        left: deque[_Job] = deque()
        for job in self._queue:
            if job.answer.cancelled():
                continue
            if not jobs or self._fits(job, jobs):
                jobs.append(job)
            else:
                left.append(job)
        self._queue = left
        if not left:
            self._arrived.clear()
        if self.queued < self._batching.max_pictures:
            self._full.clear()
        return jobs

    def _fits(self, job: _Job, jobs: Sequence[_Job]) -> bool:
        pictures = len(job.batch) + sum(len(each.batch) for each in jobs)
        same_step = job.batch.step == jobs[0].batch.step
        return self.spec.batch_invariant and same_step and pictures <= self._batching.max_pictures

    def _score(self, batches: Sequence[RewardBatch]) -> list[RewardOutput | RewardError]:
        """One answer or fault per batch; runs in a thread."""
        self.calls += 1
        merged = batches[0] if len(batches) == 1 else merge(batches)
        try:
            scores = self._composite.score(merged, tolerate=True)
        except Exception as error:
            if len(batches) == 1:
                return [_fault(self.name, error)]
            return [outcome for batch in batches for outcome in self._score([batch])]
        self.pictures += len(merged)
        whole = RewardOutput(scores.raw[self.name], scores.reasons[self.name], scores.details[self.name])
        return list(split(whole, [len(batch) for batch in batches]))

    def _settle(self, jobs: Sequence[_Job], outcomes: Sequence[RewardOutput | RewardError]) -> None:
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.answer.done():  # its client has gone
                continue
            if isinstance(outcome, RewardError):
                job.answer.set_exception(outcome)
            else:
                job.answer.set_result(outcome)


def _fault(name: str, error: Exception) -> RewardError:
    """Also a bug of ours has to reach the client that waits, and must not end the lane."""
    if isinstance(error, RewardError):
        return error
    logging.getLogger(__name__).error("reward '%s'", name, exc_info=error)
    return RewardError(f"reward '{name}': {error_line(error)}")


def merge(batches: Sequence[RewardBatch]) -> RewardBatch:
    """One batch of all rows. Groups get new ids: two trainers may use one id for different prompts."""
    groups: dict[tuple[int, int], int] = {}
    for number, batch in enumerate(batches):
        for group in batch.group_ids:
            groups.setdefault((number, group), len(groups))
    return RewardBatch(
        images=[image for batch in batches for image in batch.images],
        prompts=[prompt for batch in batches for prompt in batch.prompts],
        references=[references for batch in batches for references in batch.references],
        subjects=[subject for batch in batches for subject in batch.subjects],
        group_ids=[groups[number, group] for number, batch in enumerate(batches) for group in batch.group_ids],
        metadata=[facts for batch in batches for facts in batch.metadata],
        step=batches[0].step,
    )


def split(output: RewardOutput, sizes: Sequence[int]) -> list[RewardOutput]:
    """The parts of an output, in order."""
    parts, start = [], 0
    for size in sizes:
        here = slice(start, start + size)
        details = {key: values[here] for key, values in output.details.items()}
        parts.append(RewardOutput(output.scores[here], output.reasons[here], details))
        start += size
    return parts
