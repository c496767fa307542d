"""A vLLM server as a child process: the exact command, its log in a file, ready when /health says so, stopped for good.

vLLM lives in an environment of its own (its pins clash with a trainer's), named by the option ``python``. The server
gets a process group, so that its workers go with it. It ends with the process that started it, also on Ctrl-C and on a
SIGTERM that the process handles, as runs and ``mentor judge serve`` do. One that dies of a signal leaves it running.

In a job of several processes only the first one of a machine (LOCAL_RANK 0) launches; the others wait for its health.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mentor_rewards.contract import RewardError
from mentor_rewards.judge_prompts import MAX_PIXELS, MIN_PIXELS

DEFAULT_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
HOST = "127.0.0.1"
POLL_SECONDS = 0.2
STOP_SECONDS = 10.0


class ServeOptions(BaseModel):
    """How the server is launched: the option ``serve`` of a judge reward, and the options of ``mentor judge serve``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(None, description="weights: folder or hub id; default: the reward's own model")
    port: int = Field(8000, ge=1, le=65535)
    python: str = Field(sys.executable, description="interpreter of the environment that has vllm")
    arguments: tuple[str, ...] = Field((), description="more arguments for vllm, e.g. --tensor-parallel-size 2")
    pictures: int = Field(2, ge=1, description="most pictures of one question: references and the generated one")
    min_pixels: int = Field(MIN_PIXELS, ge=1, description="smaller pictures are enlarged to this many pixels")
    max_pixels: int = Field(MAX_PIXELS, ge=1, description="larger pictures are reduced to this many pixels")
    context: int = Field(8192, ge=1, description="longest question with its answer, in tokens")
    start_timeout: float = Field(900.0, gt=0, description="seconds until the server has to be healthy")
    log: Path = Field(Path("judge_server.log"), description="file that gets the server's output")

    def command(self, name: str) -> list[str]:
        """The command line of the server. ``name``: what requests call the model."""
        return [
            *(self.python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", self.model or name, "--served-model-name", name),
            *("--host", HOST, "--port", str(self.port)),
            *("--max-model-len", str(self.context)),
            *("--limit-mm-per-prompt", json.dumps({"image": self.pictures, "video": 0})),
            *("--mm-processor-kwargs", json.dumps({"min_pixels": self.min_pixels, "max_pixels": self.max_pixels})),
            *self.arguments,
        ]

    @property
    def base(self) -> str:
        """Scheme, host and port."""
        return f"http://{HOST}:{self.port}"

    @property
    def answers_by(self) -> str:
        """The options that change answers, for keys of caches; nothing for the defaults."""
        chosen = self.model_dump(include={"model", "arguments", "min_pixels", "max_pixels"}, exclude_defaults=True)
        return json.dumps(chosen, sort_keys=True) if chosen else ""


@dataclass
class JudgeServer:
    """A healthy server; ``close`` stops it once every user has closed.

    Attributes:
        process: None when another process of this machine launched it.
    """

    options: ServeOptions
    process: subprocess.Popen[bytes] | None
    users: int = field(default=1, init=False)

    @property
    def url(self) -> str:
        """Base URL for a client."""
        return f"{self.options.base}/v1"

    def close(self) -> None:
        """One user less; the last one stops the server."""
        with _lock:
            self.users -= 1
            if self.users > 0:
                return
            _running.pop(self.options, None)
        if self.process is not None:
            stop(self.process)


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of the loopback
_started: set[subprocess.Popen[bytes]] = set()
_running: dict[ServeOptions, JudgeServer] = {}
_lock = threading.RLock()


def shared_server(options: ServeOptions, name: str) -> JudgeServer:
    """The server with these options: launched by the first user in this process, shared by the next ones."""
    options = options.model_copy(update={"model": options.model or name})
    with _lock:
        if options in _running:
            _running[options].users += 1
            return _running[options]
        launches = int(os.environ.get("LOCAL_RANK", "0")) == 0
        process = launch(options, name) if launches else None
        try:
            wait_for_health(options, process)
        except BaseException:
            if process is not None:
                stop(process)
            raise
        _running[options] = JudgeServer(options, process)
        return _running[options]


def run_until_stopped(options: ServeOptions, name: str, on_ready: Callable[[str], None]) -> None:
    """Serve until KeyboardInterrupt; the server is stopped on every way out.

    Args:
        on_ready: called with the base URL for clients, once.

    Raises:
        RewardError: it could not start, or ended by itself.
    """
    server = shared_server(options, name)
    try:
        on_ready(server.url)
        if server.process is not None:
            code = server.process.wait()
            raise RewardError(f"judge server: ended by itself with code {code}{_last_words(options.log)}")
    except KeyboardInterrupt:
        return
    finally:
        server.close()


def launch(options: ServeOptions, name: str) -> subprocess.Popen[bytes]:
    """Start the server's process, without waiting for it; it is stopped when this process ends.

    Raises:
        RewardError: the port is taken, or there is no such interpreter.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, options.port))
        except OSError as error:
            raise RewardError(
                f"judge server: port {options.port} is taken ({error.strerror}); give another port, or the url of the "
                "server that is there"
            ) from error
    command = options.command(name)
    with options.log.open("wb") as log:
        log.write(f"{shlex.join(command)}\n".encode())
        log.flush()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise RewardError(f"judge server: cannot run {options.python}: {error.strerror}") from error
    _started.add(process)
    return process


def wait_for_health(options: ServeOptions, process: subprocess.Popen[bytes] | None) -> None:
    """Return when /health answers 200.

    Raises:
        RewardError: the process ended, or the time is up; with the last line of the log.
    """
    end = time.monotonic() + options.start_timeout
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise RewardError(f"judge server: ended with code {process.returncode} at start{_last_words(options.log)}")
        if healthy(options.base):
            return
        time.sleep(POLL_SECONDS)
    raise RewardError(f"judge server: not healthy after {options.start_timeout:g} s{_last_words(options.log)}")


def healthy(base: str) -> bool:
    """Whether the server says that it can work."""
    try:
        with _direct.open(f"{base}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def stop(process: subprocess.Popen[bytes], patience: float = STOP_SECONDS) -> None:
    """End the process and its whole group: asked first, killed after ``patience`` seconds. Harmless when it is gone."""
    if process not in _started:
        return
    _started.discard(process)
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    _signal_group(process, signal.SIGKILL)  # also workers that outlived their parent
    process.wait()


@atexit.register
def _stop_all() -> None:
    for process in list(_started):
        stop(process)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)  # start_new_session made its id the group's
    except ProcessLookupError:
        return


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = [line.strip() for line in lines[1:] if line.strip()]
    return f"; last line of {log}: {said[-1] if said else '(none)'}"
