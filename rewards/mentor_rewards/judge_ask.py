"""Asking a judge until its answer holds: cache first, then one question and at most two re-asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from mentor_rewards.judge_cache import JudgeCache, cache_key
from mentor_rewards.judge_request import Answer, JudgeBackend, JudgeRequest, JudgeSampling, NoAnswer
from mentor_rewards.judge_scores import InvalidAnswer

RE_ASKS = 2
Judged = TypeVar("Judged")


@dataclass(frozen=True)
class Verdict(Generic[Judged]):
    """A judgement, or the reason why there is none.

    Attributes:
        asked: questions that were put to the judge; 0 for an answer from the cache.
    """

    judgement: Judged | None
    reason: str | None
    asked: int


async def ask(
    request: JudgeRequest,
    backend: JudgeBackend,
    sampling: JudgeSampling,
    cache: JudgeCache | None,
    parse: Callable[[Answer], Judged],
) -> Verdict[Judged]:
    """The verdict on one picture. Only answers that hold, which ``parse`` decides, are kept in the cache.

    Raises:
        RewardError: a fault of the configuration.
    """
    key = ""
    if cache is not None:
        key = await asyncio.to_thread(cache_key, request, backend.identity, sampling)
        stored = await asyncio.to_thread(cache.get, key)
        if stored is not None:
            with suppress(InvalidAnswer):  # it held when it was stored; rules may have become stricter since
                return Verdict(parse(Answer(stored, "stop")), None, asked=0)
    reason = ""
    for attempt in range(1 + RE_ASKS):
        try:
            answer = await backend.complete(request, sampling.again(attempt))
            judgement = parse(answer)
        except NoAnswer as error:
            return Verdict(None, str(error), attempt + 1)
        except InvalidAnswer as error:
            reason = str(error)
            continue
        if cache is not None:
            await asyncio.to_thread(cache.put, key, answer.text)
        return Verdict(judgement, None, attempt + 1)
    return Verdict(None, f"{1 + RE_ASKS} answers rejected, the last: {reason}", 1 + RE_ASKS)
