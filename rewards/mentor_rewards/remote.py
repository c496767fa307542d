"""A reward that a reward server computes (`mentor rewards serve`); in a recipe it is a reward like any other.

    rewards:
      hpsv2: {use: remote, options: {url: "http://127.0.0.1:8765", reward: hpsv2}, timeout: 900}

What the reward needs, its range, version and checksums are read from the server by ``check_server``, or by ``load``
where nobody has called that before. Every answer says which
reward gave it: when a server comes back with another version or other weights, the run stops.

A refused or broken connection, a time-out and 5xx are tried again for ``patience`` seconds, so a run outlives a restart
of its server. After that, and for an answer that is not one finite score or None per picture in order, the pictures
count as failed, with the reason. 4xx is a fault of the settings and stops the run.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from mentor_rewards.contract import AsyncReward, RewardBatch, RewardError, RewardOutput, RewardSpec, nearest, one_line
from mentor_rewards.wire import (
    Listed,
    WireFault,
    decode_answer,
    decode_listing,
    encode_request,
    is_loopback,
    read_token,
)

if TYPE_CHECKING:
    import httpx

Seconds = Annotated[float, Field(gt=0)]
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds between two tries; each is half to all of it, at random
PASSING = frozenset({408, 425, 429})  # the 4xx that say "later" rather than "wrong"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Unanswered:
    """Why there is no answer; ``refused``: by a fault of the settings, which no second try mends."""

    reason: str
    refused: bool = False


class Remote(AsyncReward):
    """The score that a reward server gives for one of its rewards, in that reward's units."""

    spec = RewardSpec(name="remote", version="not loaded", network=True)

    def __init__(
        self,
        url: str,
        reward: str,
        token_env: str | None = None,
        timeout: Seconds = 120.0,
        patience: Annotated[float, Field(ge=0)] = 300.0,
        startup: Annotated[float, Field(ge=0)] = 60.0,
        send_step: bool = True,
    ) -> None:
        """
        Args:
            url: e.g. http://127.0.0.1:8765.
            reward: its name on the server.
            token_env: environment variable with the server's token.
            timeout: seconds for one try.
            patience: seconds in which tries are begun while the server does not answer.
            startup: the same for ``check_server`` and ``load``.
            send_step: False: the reward sees step 0, so that trainers at different steps can be scored together.
        """
        self.url, self.reward, self.send_step = _checked_url(url), reward, send_step
        self.token_env, self.timeout, self.patience, self.startup = token_env, timeout, patience, startup
        self._offered: Listed | None = None  # found by check_server, and not taken by load yet
        self._listed: Listed | None = None
        self._max_body = 0
        self._client_options: dict[str, Any] = {}

    def check_server(self) -> None:
        """Read the reward's spec from the server, waiting ``startup`` seconds for it.

        Every call asks anew; the next ``load`` asks again only if none has been answered.

        Raises:
            RewardError: no such server, one that refuses the token, or one without this reward.
        """
        self._offered = None
        self._client_options = self._options()
        with ThreadPoolExecutor(1) as outside:  # the caller may be inside an event loop, as in a notebook
            answer = outside.submit(lambda: asyncio.run(self._ask("GET", "/rewards", None, self.startup))).result()
        if isinstance(answer, _Unanswered):
            raise self._unusable(answer.reason)
        try:
            listing = decode_listing(answer)
        except WireFault as fault:
            raise self._unusable(f"a reply that is no list of rewards ({fault})") from fault
        if self.reward not in listing.rewards:
            raise self._unusable(f"others; {nearest(self.reward, listing.rewards)}")
        self._offered, self._max_body = listing.rewards[self.reward], listing.max_body
        self.spec = replace(self._offered.spec, network=True)

    def _unusable(self, found: str) -> RewardError:
        return RewardError(
            f"reward server {self.url}: expected one that serves the reward '{self.reward}', found {found}; "
            "`mentor rewards serve RECIPE` starts one"
        )

    def load(self, device: str, dtype: str) -> None:
        """Take what ``check_server`` found, or ask as it does; device and dtype are the server's business."""
        if self._offered is None:
            self.check_server()
        self._listed, self._offered = self._offered, None

    def unload(self) -> None:
        """Forget the server."""
        self._listed = self._offered = None

    async def ascore(self, batch: RewardBatch) -> RewardOutput:
        """N raw scores of the server, or N times None with one reason.

        Raises:
            RewardError: 4xx, a server whose reward has changed, or a batch that JSON and PNG cannot hold.
        """
        if self._listed is None:
            raise RewardError("remote: call load() first")
        if not len(batch):
            return RewardOutput([])
        step = batch.step if self.send_step else 0
        body, ids = await asyncio.to_thread(encode_request, self.reward, batch, step)
        if len(body) > self._max_body and len(batch) > 1 and self.spec.batch_invariant:
            return await self._in_halves(batch)
        answer = await self._ask("POST", "/score", body, self.patience)
        if isinstance(answer, _Unanswered):
            if answer.refused:
                raise RewardError(f"reward server {self.url}: {answer.reason}")
            return RewardOutput.missing(len(batch), f"reward server {self.url}: {answer.reason}")
        try:
            output, fingerprint = decode_answer(answer, self.reward, ids)
        except WireFault as fault:
            return RewardOutput.missing(len(batch), f"reward server {self.url}: {fault}")
        if fingerprint != self._listed.fingerprint:
            raise RewardError(await self._what_changed(self._listed.spec))
        return output

    async def _in_halves(self, batch: RewardBatch) -> RewardOutput:
        """A request above the server's limit, as two."""
        middle = len(batch) // 2
        parts = [await self.ascore(batch.select(list(rows))) for rows in (range(middle), range(middle, len(batch)))]
        keys = {key for part in parts for key in part.details}
        sizes = (middle, len(batch) - middle)
        return RewardOutput(
            [score for part in parts for score in part.scores],
            [reason for part in parts for reason in part.reasons],
            {
                key: [
                    value for part, n in zip(parts, sizes, strict=True) for value in part.details.get(key, [None] * n)
                ]
                for key in keys
            },
        )

    async def _ask(self, method: str, path: str, body: bytes | None, patience: float) -> bytes | _Unanswered:
        """The body of a 200, or why there is none after the last try."""
        import httpx

        begun, tries = time.monotonic(), 0
        async with httpx.AsyncClient(**self._client_options) as client:
            for wait in _waits():
                tries += 1
                answer = await self._try(client, method, path, body)
                waited = time.monotonic() - begun
                if isinstance(answer, bytes):
                    if tries > 1:
                        log.warning("reward server %s: answered after %d tries in %.1f s", self.url, tries, waited)
                    return answer
                if answer.refused:
                    return answer
                if waited + wait > patience:
                    return _Unanswered(f"{answer.reason} ({tries} tries in {waited:.1f} s)")
                if tries == 1:
                    log.warning("reward server %s: %s; trying again for %g s", self.url, answer.reason, patience)
                await asyncio.sleep(wait)
        raise AssertionError("waits are endless")

    async def _try(self, client: httpx.AsyncClient, method: str, path: str, body: bytes | None) -> bytes | _Unanswered:
        import httpx

        try:
            async with asyncio.timeout(self.timeout):  # httpx's own time-outs restart with every byte that comes
                answer = await client.request(method, self.url + path, content=body)
        except TimeoutError:
            return _Unanswered(f"no answer within {self.timeout:g} s")
        except httpx.HTTPError as error:
            return _Unanswered(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        if answer.status_code == httpx.codes.OK:
            return answer.content
        passing = answer.status_code >= 500 or answer.status_code in PASSING
        return _Unanswered(f"{answer.status_code}: {_error_line(answer)}", refused=not passing)

    async def _what_changed(self, before: RewardSpec) -> str:
        """The line for a server that came back with another reward; says what is new where the server can be asked."""
        line = f"reward server {self.url}: reward '{self.reward}' changed while this run used it"
        answer = await self._ask("GET", "/rewards", None, 0.0)
        try:
            now = decode_listing(answer).rewards[self.reward].spec if isinstance(answer, bytes) else before
        except (WireFault, KeyError):
            return line
        pairs = [(each.name, getattr(before, each.name), getattr(now, each.name)) for each in fields(RewardSpec)]
        return f"{line}: " + (", ".join(f"{key} {old} -> {new}" for key, old, new in pairs if old != new) or "and back")

    def _options(self) -> dict[str, Any]:
        """Of the HTTP client; made once, since a TLS context takes long to build."""
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise RewardError(f"remote: needs {error.name}; install the extra 'server': mentor-rl[server]") from error
        headers = {"content-type": "application/json"}
        if self.token_env is not None:
            headers["authorization"] = f"Bearer {read_token(self.token_env)}"
        parts = urlsplit(self.url)
        return {
            "headers": headers,
            "timeout": self.timeout,
            "verify": httpx.create_ssl_context() if parts.scheme == "https" else False,
            "trust_env": not is_loopback(parts.hostname or ""),  # no proxy leads to the own machine
        }


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username:
        raise RewardError(f"option 'url': expected http://host:port, found {url!r}")
    return url.rstrip("/")


def _waits() -> Iterator[float]:
    """Seconds between tries: doubled each time, jittered so that several trainers do not come back all at once."""
    wait = FIRST_WAIT
    while True:
        yield wait * random.uniform(0.5, 1.0)
        wait = min(2 * wait, LONGEST_WAIT)


def _error_line(answer: httpx.Response) -> str:
    """The one line of a fault; a proxy in between may answer with something else."""
    try:
        return one_line(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return one_line(answer.text)[:200] if answer.text.strip() else "no reason given"
