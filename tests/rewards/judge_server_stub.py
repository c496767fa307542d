"""A scripted OpenAI-compatible server on the loopback, in a thread, with every failure that judges are known for."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from mentor_rewards.judge_server import DEFAULT_MODEL
from PIL import Image

GOOD = {"description": "a disc", "A": 0.9, "B": 0.8, "C": 0.7, "D": 0.6, "final": 3.0}
GOOD_SUBJECT = {"description": "a disc", "A": 0.5, "B": 2.5, "C": 1.0, "final": 4.0}


@dataclass(frozen=True)
class Reply:
    """What the server does with one request.

    Attributes:
        delay: seconds before it.
        reset: break the connection instead of answering.
        drip: seconds between two bytes of the body.
    """

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    reset: bool = False
    drip: float = 0.0


Script = Callable[[dict[str, Any], int], Reply]


def says(text: str, finish_reason: str = "stop", delay: float = 0.0) -> Reply:
    """A chat completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
    return Reply(json.dumps(body).encode(), delay=delay)


def scores(values: dict[str, Any] = GOOD, **changes: Any) -> Reply:
    """An answer with these values, some of them changed."""
    return says(json.dumps({**values, **changes}))


def fails(status: int, message: str = "it went wrong", **headers: str) -> Reply:
    """An error as vLLM writes it."""
    body = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
    return Reply(json.dumps(body).encode(), status, {key.replace("_", "-"): value for key, value in headers.items()})


def offers(*models: str) -> Reply:
    """A list of models."""
    listed = [{"id": model, "object": "model", "created": 0, "owned_by": "vllm"} for model in models]
    return Reply(json.dumps({"object": "list", "data": listed}).encode())


RESET = Reply(b"", reset=True)
TRANSPORT_FAULTS: dict[str, Reply] = {
    "time-out": says(json.dumps(GOOD), delay=60.0),
    "429": fails(429, "slow down", retry_after="0.05"),
    "408": fails(408),
    "500": fails(500),
    "503": fails(503),
    "connection reset": RESET,
    "truncated body": Reply(b'{"id": "1", "object": "chat.comp'),
    "no choices": Reply(b'{"id": "1", "object": "chat.completion", "choices": []}'),
    "no message": Reply(b'{"id": "1", "object": "chat.completion", "choices": [{}]}'),
    "null for a choice": Reply(b'{"id": "1", "object": "chat.completion", "choices": [null]}'),
    "a list for a text": Reply(b'{"choices": [{"finish_reason": "stop", "message": {"content": [1]}}]}'),
    "HTML": Reply(b"<html>Bad gateway</html>", headers={"content-type": "text/html"}),
}
ANSWER_FAULTS: dict[str, Reply] = {
    "truncated JSON": says(json.dumps(GOOD)[:40]),
    "cut off at max_tokens": says(json.dumps(GOOD), finish_reason="length"),
    "empty": says(""),
    "missing key": says(json.dumps({key: value for key, value in GOOD.items() if key != "C"})),
    "extra key": scores(E=1.0),
    "out of range": scores(B=1.2),
    "negative": scores(B=-0.1),
    "NaN": scores(D=float("nan")),
    "infinite": scores(D=float("inf")),
    "boolean": scores(A=True),
    "string": scores(A="0.9"),
    "null": scores(A=None),
    "list": says("[0.9, 0.8]"),
    "markdown fences": says(f"```json\n{json.dumps(GOOD)}\n```"),
    "doubled key": says(json.dumps(GOOD)[:-1] + ', "A": 1.0}'),
    "text behind": says(json.dumps(GOOD) + " The final score is 4."),
    "endless digits": says(json.dumps(GOOD).replace("0.9", "9" * 5000)),
    "endless description": scores(description="x" * 5000),
}


class JudgeStub:
    """The server; use as a context manager.

    Args:
        script: answers a request body; the second argument counts the requests, from 0.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.listing, self.listings = (
            offers("judge", "another", DEFAULT_MODEL),
            0,
        )  # the answer to GET /v1/models, and how often it was asked
        self.busy = self.peak = 0  # requests under way, now and at most
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        config = uvicorn.Config(
            self._app, interface="asgi3", log_level="critical", lifespan="off", http="h11", ws="none", loop="asyncio"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> JudgeStub:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(5)
        self._socket.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        data = b""
        more = True
        while more:
            message = await receive()
            data += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["method"] == "GET":
            await self._list_models(scope["path"], send)
            return
        body = json.loads(data)
        self.bodies.append(body)
        self.busy, self.peak = self.busy + 1, max(self.peak, self.busy + 1)
        reply = self.script(body, len(self.bodies) - 1)
        await asyncio.sleep(reply.delay)
        self.busy -= 1
        if reply.reset:
            send.__self__.transport.abort()
            return
        headers = {"content-type": "application/json", **reply.headers}
        pairs = [(key.encode(), value.encode()) for key, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": pairs})
        for byte in reply.body if reply.drip else b"":
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
            await asyncio.sleep(reply.drip)
        await send({"type": "http.response.body", "body": b"" if reply.drip else reply.body})

    async def _list_models(self, path: str, send: Any) -> None:
        assert path == "/v1/models", path
        self.listings += 1
        reply = self.listing
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})


def in_turn(*replies: Reply) -> Script:
    """One reply after the other; the last one from then on."""
    return lambda _, count: replies[min(count, len(replies) - 1)]


def texts(body: dict[str, Any]) -> list[str]:
    """The text parts of the user's message."""
    return [part["text"] for part in body["messages"][1]["content"] if part["type"] == "text"]


def pictures(body: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a request, in its order."""
    urls = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) for url in urls]
