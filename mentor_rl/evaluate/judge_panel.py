"""Judgements of pictures under rubrics, several passes each, by the judges of mentor_rewards (server or in-process)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mentor_rewards.contract import RewardError
from mentor_rewards.event_loop import EventLoop
from mentor_rewards.judge_ask import Verdict, ask
from mentor_rewards.judge_cache import JudgeCache
from mentor_rewards.judge_client import JudgeClient, api_key
from mentor_rewards.judge_request import JudgeBackend, JudgeRequest, JudgeSampling, Picture

from mentor_rl.evaluate.recipes import Judge
from mentor_rl.evaluate.rubrics import Rubric

PASS_SEEDS = 1000  # apart: a re-ask moves the seed by one


@dataclass(frozen=True)
class Case:
    """One picture to judge under several rubrics. ``references`` are shown to those that want them."""

    rubrics: tuple[Rubric, ...]
    prompt: str
    picture: Picture
    references: tuple[Picture, ...]


@dataclass(frozen=True)
class Judged:
    """The scores of a case: rubric -> one whole number per pass; ``reason`` where a pass has none."""

    scores: Mapping[str, list[int]]
    reason: str | None


class JudgePanel:
    """A judge that is asked ``passes`` times about each picture, each time with another seed."""

    def __init__(self, settings: Judge) -> None:
        self.settings = settings
        self._loop: EventLoop | None = None
        self._backend: JudgeBackend | None = None
        self._answers: JudgeCache | None = None

    def load(self, device: str) -> None:
        """Open the judge, and its cache of answers.

        Raises:
            RewardError: an extra is missing, or the judge cannot be opened.
        """
        s = self.settings
        if s.backend == "local":
            from mentor_rewards.judge_local import LocalJudge

            self._backend = LocalJudge(s.model, device, s.dtype)
        else:
            self._backend = self._client()
        self._answers = JudgeCache(Path(s.cache)) if s.cache else None
        self._loop = EventLoop()

    def check(self) -> None:
        """Whether the judge's server answers, or the files of a judge in this process and its package are there.

        Raises:
            RewardError: it does not, they are not.
        """
        if self.settings.backend == "local":
            from mentor_rewards.judge_local import find_local

            find_local(self.settings.model)
        else:
            self._client().check_server()

    def _client(self) -> JudgeClient:
        s = self.settings
        assert s.url is not None, "the recipe has looked"
        key = api_key(s.api_key_env)
        return JudgeClient(s.url, s.model, key, s.concurrency, s.timeout, s.retries, find_model=s.find_model)

    def unload(self) -> None:
        """Close all that ``load`` opened."""
        for opened in (self._backend, self._answers):
            if opened is not None:
                opened.close()
        if self._loop is not None:
            self._loop.stop()
        self._backend, self._answers, self._loop = None, None, None

    def name(self, rubrics: Sequence[Rubric]) -> str:
        """Model, decoding and questions."""
        assert self._backend is not None
        s = self.settings
        asked = ", ".join(f"{rubric.name} {rubric.version}" for rubric in rubrics)
        return f"{self._backend.model} (temperature {s.temperature:g}, {s.passes} passes; rubrics {asked})"

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """All cases at once; the client bounds what is under way.

        Raises:
            RewardError: a fault of the configuration.
        """
        assert self._loop is not None
        return self._loop.submit(self._judge(cases)).result()

    async def _judge(self, cases: Sequence[Case]) -> list[Judged]:
        try:
            async with asyncio.TaskGroup() as tasks:
                waiting = [
                    [(rubric.name, tasks.create_task(self._ask(case, rubric, number)))
                     for rubric in case.rubrics for number in range(self.settings.passes)]
                    for case in cases
                ]  # fmt: skip
        except* RewardError as group:  # the first fault has cancelled the others
            raise group.exceptions[0] from None
        return [_gathered([(name, task.result()) for name, task in row]) for row in waiting]

    async def _ask(self, case: Case, rubric: Rubric, number: int) -> Verdict[int]:
        assert self._backend is not None
        sampling = JudgeSampling(self.settings.temperature, self.settings.max_tokens, PASS_SEEDS * number)
        references = case.references if rubric.with_reference else ()
        request = JudgeRequest(rubric, case.prompt, case.picture, references)
        return await ask(request, self._backend, sampling, self._answers, rubric.parse)


def _gathered(verdicts: Sequence[tuple[str, Verdict[int]]]) -> Judged:
    scores: dict[str, list[int]] = {}
    for name, verdict in verdicts:
        if verdict.judgement is None:
            return Judged({}, f"{name}: {verdict.reason}")
        scores.setdefault(name, []).append(verdict.judgement)
    return Judged(scores, None)
