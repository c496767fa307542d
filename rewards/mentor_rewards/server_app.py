"""The HTTP application of a reward server (server.py says what it speaks, wire.py how). Needs the extra ``server``."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardBatch, RewardError, RewardOutput, error_line, nearest
from mentor_rewards.micro_batching import Batching, Lane
from mentor_rewards.reward_schedule import is_async
from mentor_rewards.wire import FORMAT, Limits, WireFault, batch_of, decode_request, encode_answer, listed

CLIENT_GONE = 499  # nobody reads it

Handler = Callable[[Request], Awaitable[Response]]


def build_app(composites: Mapping[str, Composite], token: str | None, batching: Batching, limits: Limits) -> Starlette:
    """The application around loaded composites of one reward each.

    Args:
        token: what clients have to send; None lets everyone in.
    """
    endpoints = _Endpoints(composites, batching, limits)
    routes = [
        Route("/health", _guarded(endpoints.health, token), methods=["GET"]),
        Route("/rewards", _guarded(endpoints.listing, token), methods=["GET"]),
        Route("/score", _guarded(endpoints.score, token), methods=["POST"]),
    ]
    handlers = {HTTPException: _no_such_page, Exception: _bug}
    return Starlette(routes=routes, lifespan=endpoints.lifespan, exception_handlers=handlers)


class _Endpoints:
    def __init__(self, composites: Mapping[str, Composite], batching: Batching, limits: Limits) -> None:
        self._limits = limits
        self._since = time.monotonic()
        self._lanes: dict[str, Lane] = {}
        devices: dict[str, asyncio.Lock] = {}
        for name, composite in composites.items():
            # A reward that waits for someone else has no device to take turns on.
            device = f"of {name} alone" if is_async(composite.rewards[name]) else composite.entries[name].device
            self._lanes[name] = Lane(composite, devices.setdefault(device, asyncio.Lock()), batching)
        self._specs = {name: listed(lane.spec) for name, lane in self._lanes.items()}

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(lane.run(), name=name) for name, lane in self._lanes.items()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def health(self, _: Request) -> Response:
        rewards = {
            name: {
                "version": lane.spec.version,
                "weights": dict(lane.spec.weights),
                "calls": lane.calls,
                "pictures": lane.pictures,
                "queued": lane.queued,
            }
            for name, lane in self._lanes.items()
        }
        return JSONResponse({"status": "ok", "seconds": time.monotonic() - self._since, "rewards": rewards})

    async def listing(self, _: Request) -> Response:
        return JSONResponse({"format": FORMAT, "rewards": self._specs, "max_body": self._limits.body})

    async def score(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise WireFault("content-type: expected application/json", 415)
        asked = await asyncio.to_thread(decode_request, await _body(request, self._limits.body))
        if asked.reward not in self._lanes:
            raise WireFault(f"unknown reward '{asked.reward}'; {nearest(asked.reward, self._lanes)}", 404)
        batch = await asyncio.to_thread(batch_of, asked, self._limits)
        output = await self._scored(request, self._lanes[asked.reward], batch)
        answer = await asyncio.to_thread(encode_answer, asked, output, self._specs[asked.reward]["fingerprint"])
        return Response(answer, media_type="application/json")

    async def _scored(self, request: Request, lane: Lane, batch: RewardBatch) -> RewardOutput:
        """Wait for the lane, but give the place up when the client has gone: it will ask again."""
        waiting = lane.submit(batch)
        watch = asyncio.create_task(_cancel_when_gone(request, waiting))
        try:
            return await waiting
        except asyncio.CancelledError:
            if watch.done():
                raise ClientDisconnect from None
            raise
        finally:
            watch.cancel()


def _guarded(handler: Handler, token: str | None) -> Handler:
    """The token first, before a byte of the body is read; faults as JSON with their status."""

    async def guarded(request: Request) -> Response:
        try:
            _check_token(request, token)
            return await handler(request)
        except WireFault as fault:
            return _fault(str(fault), fault.status)
        except RewardError as error:
            return _fault(str(error), 500)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)

    return guarded


def _check_token(request: Request, token: str | None) -> None:
    given = request.headers.get("authorization", "")
    if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise WireFault("authorization: expected 'Bearer' and the server's token, found another or none", 401)


async def _body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise WireFault(f"request: expected at most {limit} bytes, found {declared}", 413)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise WireFault(f"request: expected at most {limit} bytes, found more", 413)
    return bytes(body)


async def _cancel_when_gone(request: Request, waiting: asyncio.Future[RewardOutput]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
    waiting.cancel()


def _fault(line: str, status: int) -> Response:
    return JSONResponse({"error": line}, status_code=status)


async def _no_such_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _fault(
        f"{request.method} {request.url.path}: {error.detail}; known: GET /health, GET /rewards, POST /score",
        error.status_code,
    )


async def _bug(_: Request, error: Exception) -> Response:
    return _fault(error_line(error), 500)  # the traceback goes to the server's log
