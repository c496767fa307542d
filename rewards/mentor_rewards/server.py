"""A reward server: any set of rewards behind HTTP, so that trainers on other machines or processes share one GPU.

    GET  /health   {"status": "ok", "rewards": {name: {"version", "weights", "calls", "pictures", "queued"}}, ...}
    GET  /rewards  the specs, see wire.Listing
    POST /score    see wire.py

Raw scores are served: weight, scale, clip, tasks, role and ``on_missing`` of the served entries have no effect, they
are the trainer's. Faults are JSON ``{"error": line}``: 400 malformed (names the field), 401 token, 404 unknown reward
(names the nearest), 413 too large, 415 not JSON, 500 the reward failed (with its name).

A server listens on the loopback device unless told otherwise, and then demands a token, read from an environment
variable. It speaks plain HTTP: across networks that others can read, put a TLS proxy or an SSH tunnel in front.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry, RewardError, first_problem, nearest
from mentor_rewards.micro_batching import Batching
from mentor_rewards.strict_yaml import parse_document
from mentor_rewards.wire import Limits, is_loopback, read_token

if TYPE_CHECKING:
    import uvicorn

LOOPBACK = "127.0.0.1"
CONNECTIONS = 256  # more than these at a time are answered 503, which a trainer tries again


@dataclass(frozen=True)
class Settings:
    """Where and how to serve.

    Attributes:
        host: address to listen on; any but a loopback address needs ``token_env``.
        port: 0 takes a free one.
        token_env: name of the environment variable that holds the token.
    """

    host: str = LOOPBACK
    port: int = 8765
    token_env: str | None = None
    batching: Batching = field(default_factory=Batching)
    limits: Limits = field(default_factory=Limits)

    def token(self) -> str | None:
        """The token to demand, None for none. Raises RewardError where one is needed and none is set."""
        if self.token_env is not None:
            return read_token(self.token_env)
        if not is_loopback(self.host):
            raise RewardError(
                f"serve: host {self.host} can be reached from other machines: expected --token-env NAME, the "
                "environment variable that holds the token, found none"
            )
        return None


def serve_recipe(recipe: Path, settings: Settings, only: Sequence[str] = ()) -> None:
    """Serve the ``rewards:`` section of a YAML file until Ctrl-C or SIGTERM.

    Raises:
        RewardError: a file, entry, address or token that cannot be used as given.
    """
    try:
        text = recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "expected a text file in UTF-8, found other bytes"
        raise RewardError(f"{recipe}: cannot read this recipe: {reason}") from error
    serve(read_entries(parse_document(text, str(recipe)).data, str(recipe), only), settings, recipe.parent)


def read_entries(document: Any, where: str, only: Sequence[str] = ()) -> dict[str, RewardEntry]:
    """The entries of the ``rewards:`` section of a recipe, of any kind or a bare one; ``only`` picks some by name."""
    section = document.get("rewards") if isinstance(document, Mapping) else None
    if not isinstance(section, Mapping) or not section:
        keys = ", ".join(map(str, document)) if isinstance(document, Mapping) else ""
        raise RewardError(f"{where}: expected a section 'rewards' with at least one entry, found {keys or 'none'}")
    for name in only:
        if name not in section:
            raise RewardError(f"{where}: rewards: no entry '{name}'; {nearest(name, map(str, section))}")
    wanted = only or list(section)
    return {str(name): _entry(section[name], f"{where}: rewards.{name}") for name in wanted}


def _entry(value: Any, where: str) -> RewardEntry:
    try:
        return RewardEntry.model_validate(value or {})
    except ValidationError as error:
        raise RewardError(f"{where}: {first_problem(error, RewardEntry)}") from None


def serve(entries: Mapping[str, RewardEntry], settings: Settings, base: Path | None = None) -> None:
    """Load the rewards, then serve them until Ctrl-C or SIGTERM."""
    with _prepared(entries, settings, base) as (server, listener):
        print(f"serving {', '.join(entries)} on {_url(listener)}", flush=True)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


@contextmanager
def serving(
    entries: Mapping[str, RewardEntry], settings: Settings | None = None, base: Path | None = None
) -> Iterator[str]:
    """A server in a thread of this process, on a free port unless told otherwise; gives its URL."""
    with _prepared(entries, settings or Settings(port=0), base) as (server, listener):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="reward server", daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                time.sleep(0.002)
            if not server.started:
                raise RewardError("serve: the server did not start, see its log")
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _prepared(
    entries: Mapping[str, RewardEntry], settings: Settings, base: Path | None
) -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """Address taken, rewards loaded, application built."""
    try:
        import uvicorn

        from mentor_rewards.server_app import build_app
    except ModuleNotFoundError as error:
        raise RewardError(f"serve: needs {error.name}; install the extra 'server': mentor-rl[server]") from error
    token = settings.token()
    if not entries:
        raise RewardError("serve: expected at least one reward, found none")
    with _bound(settings.host, settings.port) as listener, _loaded(entries, base) as composites:
        app = build_app(composites, token, settings.batching, settings.limits)
        config = uvicorn.Config(
            app,
            lifespan="on",
            log_level="warning",
            access_log=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=10,
        )
        yield uvicorn.Server(config), listener


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket with this address. It does not listen yet: clients are refused, and try again, while weights load."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise RewardError(f"serve: no such host {host}: {error.strerror}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise RewardError(f"serve: cannot listen on {host}:{port}: {error.strerror}") from error
        yield listener


@contextmanager
def _loaded(entries: Mapping[str, RewardEntry], base: Path | None) -> Iterator[dict[str, Composite]]:
    """A composite for each entry. Which tasks it is for, and whether more is better, is the trainer's business."""
    raw = {"role": "monitor", "tasks": None}
    with ExitStack() as stack:
        composites = {
            name: Composite({name: entry.model_copy(update=raw)}, base=base) for name, entry in entries.items()
        }
        for composite in composites.values():
            stack.enter_context(composite)
        yield composites


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
