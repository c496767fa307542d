"""A vision-language model as judge: text to image, and subject, on the scales of the paper's two judge prompts.

The scales are those of appendix B.4; judge_prompts.py says what else is the paper's, and what is ours. The judge is
Qwen2.5-VL-7B behind an OpenAI-compatible server (vLLM), or in this process. Scores are native units, 0 to 4 and 0 to 5;
the recipe's ``scale`` (1/4, 1/5) makes them comparable. A picture without a valid answer stays without a score.
Licences: Qwen2.5-VL-7B is Apache-2.0, the 3B model is for research only.

In-process judging takes one picture at a time; it is for small models and for machines without a server.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from PIL import Image
from pydantic import Field

from mentor_rewards.contract import AsyncReward, RewardBatch, RewardError, RewardOutput, RewardSpec
from mentor_rewards.judge_ask import Verdict, ask
from mentor_rewards.judge_cache import JudgeCache
from mentor_rewards.judge_client import FindModel, JudgeClient, api_key
from mentor_rewards.judge_prompts import SUBJECT, TEXT_TO_IMAGE, JudgeTemplate
from mentor_rewards.judge_request import Answer, JudgeBackend, JudgeRequest, JudgeSampling, Picture
from mentor_rewards.judge_scores import Judgement, parse_answer
from mentor_rewards.judge_server import DEFAULT_MODEL, JudgeServer, ServeOptions, shared_server

LICENCE = "Apache-2.0 (Qwen2.5-VL-7B)"


class JudgeReward(AsyncReward):
    """What the judge rewards share: their options, and a verdict for each picture of a batch."""

    spec: RewardSpec
    template: ClassVar[JudgeTemplate]

    def __init__(
        self,
        url: str | None = None,
        model: str = DEFAULT_MODEL,
        backend: Literal["server", "local"] = "server",
        serve: ServeOptions | None = None,
        concurrency: Annotated[int, Field(gt=0)] = 32,
        timeout: Annotated[float, Field(gt=0)] = 60.0,
        retries: Annotated[int, Field(ge=0)] = 6,
        backoff: Annotated[float, Field(gt=0)] = 0.5,
        temperature: Annotated[float, Field(ge=0)] = 0.0,
        max_tokens: Annotated[int, Field(gt=0)] = 512,
        seed: int = 0,
        cache: str | None = None,
        api_key_env: str | None = None,
        find_model: FindModel = "list",
    ) -> None:
        """
        Args:
            url: base URL of the server, e.g. ``http://127.0.0.1:8000/v1``; or ``serve``, or ``backend: local``.
            model: as the server calls it; with ``backend: local`` a folder or hub id.
            serve: launch a server at load and stop it at unload; see judge_server.py.
            concurrency, timeout, retries, backoff: of the client, see JudgeClient; ``timeout`` in seconds for one try.
            temperature, max_tokens, seed: of the first question; see JudgeSampling.again for re-asks.
            cache: file of answers to keep, made when absent; in the current folder unless absolute.
            api_key_env: name of the environment variable that holds the server's key.
            find_model: before any work, look for the model in the server's list (``list``), or put a question of one
                token to it (``ask``), for servers that do not list all of theirs; see judge_client.py.
        """
        places = [name for name, given in (("url", url), ("serve", serve), ("local", backend == "local")) if given]
        if len(places) != 1:
            raise RewardError(
                "expected one of the options url (a running server), serve (launch one) and backend: local, "
                f"found {' and '.join(places) or 'none'}"
            )
        self.url, self.model, self.backend, self.serve = url, model, backend, serve
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self.sampling = JudgeSampling(temperature, max_tokens, seed)
        self.cache, self.api_key_env, self.find_model = cache, api_key_env, find_model
        if backend == "local":
            self.spec = replace(self.spec, network=False, deterministic=True)
        self._judge: JudgeBackend | None = None
        self._checked: JudgeClient | None = None  # its server has answered check_server, and load has not taken it yet
        self._answers: JudgeCache | None = None
        self._server: JudgeServer | None = None

    def load(self, device: str, dtype: str) -> None:
        """Open the cache and the judge; launches a server, or loads weights, where the options ask for it."""
        self._answers = JudgeCache(Path(self.cache)) if self.cache else None
        if self.backend == "local":
            from mentor_rewards.judge_local import LocalJudge

            self._judge = LocalJudge(self.model, device, dtype)
            return
        if self.serve is not None:
            self._server = shared_server(self.serve, self.model)
            self._judge = self._client(self._server.url, served=self.serve.answers_by)
            return
        if self._checked is None:
            self.check_server()
        self._judge, self._checked = self._checked, None

    def check_files(self) -> None:
        """Those of a judge in this process; a server has its own."""
        if self.backend == "local":
            from mentor_rewards.judge_local import find_local

            find_local(self.model)

    def check_server(self) -> None:
        """Whether the server of the option ``url`` answers; what ``load`` launches or reads is left to it.

        Every call asks anew; the next ``load`` asks again only if none has been answered.
        """
        self._checked = None
        if self.url is not None:
            client = self._client(self.url)
            client.check_server()
            self._checked = client

    def _client(self, url: str, served: str = "") -> JudgeClient:
        transport = self.concurrency, self.timeout, self.retries, self.backoff
        return JudgeClient(url, self.model, api_key(self.api_key_env), *transport, self.find_model, served)

    def unload(self) -> None:
        """Close all that ``load`` opened."""
        for opened in (self._judge, self._answers, self._server):
            if opened is not None:
                opened.close()
        self._judge, self._checked, self._answers, self._server = None, None, None, None

    async def ascore(self, batch: RewardBatch) -> RewardOutput:
        """Verdicts of all pictures at once; the client bounds what is under way.

        Details: the sub-scores by axis, ``description``, ``disagreement`` (of the model's own final with the score) and
        ``asked`` (questions, 0 from the cache).
        """
        if self._judge is None:
            raise RewardError("score before load")
        requests = self._requests(batch)
        try:
            async with asyncio.TaskGroup() as tasks:
                waiting = [
                    tasks.create_task(ask(request, self._judge, self.sampling, self._answers, self._parse))
                    for request in requests
                ]
        except BaseExceptionGroup as group:  # the first fault has cancelled the others
            raise group.exceptions[0] from None
        return self._output([task.result() for task in waiting])

    def _parse(self, answer: Answer) -> Judgement:
        return parse_answer(answer.text, answer.finish_reason, self.template)

    def _requests(self, batch: RewardBatch) -> list[JudgeRequest]:
        pictures: dict[int, Picture] = {}

        def once(image: Image.Image) -> Picture:
            return pictures.setdefault(id(image), Picture(image))

        return [
            JudgeRequest(self.template, prompt, once(image), tuple(once(reference) for reference in references))
            for prompt, image, references in zip(batch.prompts, batch.images, batch.references, strict=True)
        ]

    def _output(self, verdicts: list[Verdict[Judgement]]) -> RewardOutput:
        found = [verdict.judgement for verdict in verdicts]
        keys = [axis.key for axis in self.template.axes]
        return RewardOutput(
            scores=[None if each is None else each.score for each in found],
            reasons=[verdict.reason for verdict in verdicts],
            details={
                **{key: [None if each is None else each.parts[key] for each in found] for key in keys},
                "description": [None if each is None else each.description for each in found],
                "disagreement": [None if each is None else each.disagreement for each in found],
                "asked": [verdict.asked for verdict in verdicts],
            },
        )


class QwenVlT2i(JudgeReward):
    """Picture against text by a vision-language judge, 0 to 4: content, attributes, plausibility, composition."""

    spec = RewardSpec(
        name="qwen_vl_t2i",
        version=TEXT_TO_IMAGE.version,
        needs=frozenset({"prompt"}),
        range=(0.0, TEXT_TO_IMAGE.maximum),
        deterministic=False,
        network=True,
        licence=LICENCE,
    )
    template = TEXT_TO_IMAGE


class QwenVlSubject(JudgeReward):
    """Picture against text and reference pictures by a vision-language judge, 0 to 5: quality, subject, harmony."""

    spec = RewardSpec(
        name="qwen_vl_subject",
        version=SUBJECT.version,
        needs=frozenset({"prompt", "reference"}),
        range=(0.0, SUBJECT.maximum),
        deterministic=False,
        network=True,
        licence=LICENCE,
    )
    template = SUBJECT
