"""The judge behind an OpenAI-compatible server (vLLM with Qwen2.5-VL or Qwen3-VL): one async client, bounded.

What is retried, with growing, jittered waits: no connection, a time-out, a broken reply, 408, 429 and 5xx (for as long
as ``Retry-After`` says). Every other 4xx is a fault of the configuration (wrong model, too many pictures) and raised.

Before any work the server is asked for its list of models, which costs nothing and tells a wrong name from the nearest
right one. A server without such a list (404, 405, 501, or an empty one) is asked one question of a few words instead.
Gateways that list some of their models only want ``find_model: ask``: the question alone. It is not the default, since
some servers answer under any name with whatever they have.

Old parameters for guided decoding are ignored by servers without a word; ``response_format`` is the one that holds.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from mentor_rewards.contract import RewardError, nearest, one_line
from mentor_rewards.judge_request import Answer, JudgeRequest, JudgeSampling, NoAnswer
from mentor_rewards.wire import is_loopback

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

FindModel = Literal["list", "ask"]

LONGEST_WAIT = 30.0  # seconds between two tries, when the server does not say
LONGEST_RETRY_AFTER = 120.0
RETRIED_STATUS = frozenset({408, 429})
NO_SUCH_LIST = frozenset({404, 405, 501})
SHOWN = 300


class JudgeClient:
    """A JudgeBackend that asks a server.

    Args:
        url: base, with the version: ``http://127.0.0.1:8000/v1``.
        model: name under which the server offers it.
        concurrency: requests under way at the same time.
        timeout: seconds for one try.
        retries: tries after the first that failed in transport.
        backoff: seconds before the second try, doubled from then on.
        find_model: whether ``check_server`` looks for the model in the server's list, or asks it a question.
        served: what is known of the weights and options behind the name, for cache keys.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str = "none",
        concurrency: int = 32,
        timeout: float = 60.0,
        retries: int = 6,
        backoff: float = 0.5,
        find_model: FindModel = "list",
        served: str = "",
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise RewardError(f"the judge needs the extra 'judge': pip install 'mentor-rl[judge]' ({error})") from error
        self._openai = openai
        self.url, self.model, self.identity = url, model, f"{model} {served}".strip()
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self._find_model = find_model
        self._options: dict[str, Any] = {"base_url": url, "api_key": api_key, "timeout": timeout, "max_retries": 0}
        self._proxies = not is_loopback(urlsplit(url).hostname or "")  # none leads to the own machine
        self._session: tuple[asyncio.AbstractEventLoop, AsyncOpenAI, asyncio.Semaphore] | None = None

    def check_server(self) -> None:
        """Find out, without a retry, whether the server has the model: by its list, or by a question (see the top).

        A server that is too busy to say (408, 429) is there all the same.

        Raises:
            RewardError: no server, one that refuses the key, or one without the model.
        """
        openai = self._openai
        offered: list[str] = []
        try:
            http = openai.DefaultHttpxClient(trust_env=self._proxies)
            with openai.OpenAI(**self._options, http_client=http) as client:
                offered = _listed(client) if self._find_model == "list" else []
                if not offered:
                    self._ask_a_word(client)
        except openai.APIStatusError as error:
            if error.status_code not in RETRIED_STATUS:
                raise self._unusable(f"{error.status_code}, {_line(error)}") from error
        except openai.APITimeoutError as error:
            raise self._unusable(f"no answer within {self.timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise self._unusable(f"no connection ({_line(error.__cause__ or error)})") from error
        except (openai.APIError, ValueError, AttributeError) as error:  # no JSON, or another one than promised
            raise self._unusable(f"a reply of something else ({_line(error)})") from error
        if offered and self.model not in offered:
            raise self._unusable(
                f"others; {nearest(self.model, offered)} (`find_model: ask` suits a server that lists only some)"
            )

    def _ask_a_word(self, client: OpenAI) -> None:
        reply = client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": "Is there a judge?"}], max_tokens=1
        )
        if _answer_in(reply) is None:
            raise ValueError(f"no choices in {_line(reply)}")

    def _unusable(self, found: str) -> RewardError:
        return RewardError(
            f"the judge at {self.url}: expected a server that offers the model '{self.model}', found {found}; "
            f"`mentor judge serve --model {self.model}` starts one"
        )

    async def complete(self, request: JudgeRequest, sampling: JudgeSampling) -> Answer:
        """One answer of the server; see JudgeBackend."""
        body = await asyncio.to_thread(self._body, request, sampling)
        for retry in range(self.retries + 1):
            answer, wait, reason = await self._try(body)
            if answer is not None:
                return answer
            if wait is not None and wait > LONGEST_RETRY_AFTER:
                raise NoAnswer(f"{reason}, and to come back in {wait:.0f} s")
            if retry < self.retries:
                await asyncio.sleep(self._wait(retry, wait))
        raise NoAnswer(f"{reason} ({self.retries + 1} tries)")

    def close(self) -> None:
        """Close the connections, from any thread but the event loop's own."""
        if self._session is None:
            return
        loop, client, _ = self._session
        self._session = None
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(client.close(), loop).result(timeout=10)

    async def _try(self, body: dict[str, Any]) -> tuple[Answer | None, float | None, str]:
        """The answer; else the wait that the server asks for and the reason."""
        openai = self._openai
        client, slots = self._open()
        try:
            async with slots, asyncio.timeout(self.timeout):  # httpx's own time-outs restart with every byte that comes
                # chat.completions.create walks through every field of the body by type: a third of a call's time
                reply = await client.post("/chat/completions", cast_to=openai.types.chat.ChatCompletion, body=body)
        except openai.APIStatusError as error:
            if error.status_code < 500 and error.status_code not in RETRIED_STATUS:
                raise RewardError(
                    f"the judge at {self.url} refuses the request as configured: {error.status_code}, {_line(error)}"
                ) from error
            return None, retry_after(error.response.headers), f"the judge answered {error.status_code}: {_line(error)}"
        except (TimeoutError, openai.APITimeoutError):
            return None, None, f"no answer from {self.url} within {self.timeout:g} s"
        except openai.APIConnectionError as error:
            return None, None, f"no connection to {self.url}: {_line(error.__cause__ or error)}"
        except (openai.APIError, ValueError) as error:  # a body that is no JSON, or another one than promised
            return None, None, f"broken reply from {self.url}: {_line(error)}"
        answer = _answer_in(reply)
        if answer is None:
            return None, None, f"broken reply from {self.url}: no choices in {_line(reply)}"
        return answer, None, ""

    def _body(self, request: JudgeRequest, sampling: JudgeSampling) -> dict[str, Any]:
        schema = {"name": request.template.name, "schema": request.template.schema(), "strict": True}
        return {
            "model": self.model,
            "messages": request.messages([picture.url for picture in request.pictures]),
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }

    def _open(self) -> tuple[AsyncOpenAI, asyncio.Semaphore]:
        """Client and slots of the running loop: connections cannot move to another one."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session[0] is not loop:
            http = self._openai.DefaultAsyncHttpxClient(trust_env=self._proxies)
            client = self._openai.AsyncOpenAI(**self._options, http_client=http)
            self._session = (loop, client, asyncio.Semaphore(self.concurrency))
        return self._session[1], self._session[2]

    def _wait(self, retry: int, asked: float | None) -> float:
        """Seconds before the next try; the jitter keeps many callers from coming back at the same moment."""
        if asked is not None:
            return asked + random.uniform(0.0, self.backoff)
        return min(LONGEST_WAIT, self.backoff * 2**retry) * random.uniform(0.5, 1.5)


def api_key(variable: str | None) -> str:
    """The key in an environment variable; "none", which servers without keys take, when no variable is named.

    Raises:
        RewardError: it is not set.
    """
    if variable is None:
        return "none"
    key = os.environ.get(variable)
    if not key:
        raise RewardError(f"option 'api_key_env': the environment variable {variable} is not set")
    return key


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number or a date, RFC 9110), None without a readable one."""
    value = headers.get("retry-after", "").strip()
    if value.replace(".", "", 1).isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _listed(client: OpenAI) -> list[str]:
    """The names in the server's list of models; none where it keeps no such list."""
    from openai import APIStatusError

    try:
        return [model.id for model in client.models.list().data or []]
    except APIStatusError as error:
        if error.status_code in NO_SUCH_LIST:
            return []
        raise


def _answer_in(reply: Any) -> Answer | None:
    """The first choice of a reply; None for one of another form, which openai lets through."""
    try:
        choice = reply.choices[0]
        text = choice.message.content or ""
        return Answer(text, choice.finish_reason) if isinstance(text, str) else None
    except (AttributeError, IndexError, KeyError, TypeError):
        return None


def _line(value: object) -> str:
    text = one_line(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
