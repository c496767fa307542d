"""The reward ``remote`` against servers that are dead, slow, half-broken, and one that is killed and started again."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mentor_rewards.composite import Composite
from mentor_rewards.contract import (
    Reward,
    RewardBatch,
    RewardEntry,
    RewardError,
    RewardFailure,
    RewardOutput,
    RewardSpec,
)
from mentor_rewards.remote import Remote
from mentor_rewards.server import Settings, serving
from mentor_rewards.testing import check_reward, sample_batch
from mentor_rewards.wire import FORMAT, Limits, listed

Answer = tuple[int, bytes] | Callable[[BaseHTTPRequestHandler], None]
HERE = __name__


class Counting(Reward):
    """The place of a picture in the call, and the step."""

    spec = RewardSpec(name="counting", version="1", batch_invariant=True)

    def score(self, batch: RewardBatch) -> RewardOutput:
        return RewardOutput([float(image.getpixel((0, 0))[0]) + batch.step for image in batch.images])  # type: ignore[index]


class Scripted:
    """A server that answers POST /score by a script, one step a request; the last step stays."""

    def __init__(self, *script: Callable[[dict[str, Any]], Answer]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.listing: tuple[int, bytes] | None = None  # the answer to GET /rewards instead of the true one
        self.listings = 0
        self._script = script

    def answer(self, request: dict[str, Any]) -> Answer:
        step = self._script[min(len(self.requests), len(self._script) - 1)]
        self.requests.append(request)
        return step(request)


@contextmanager
def scripted(*script: Callable[[dict[str, Any]], Answer]) -> Iterator[tuple[str, Scripted]]:
    server = Scripted(*script)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.listings += 1
            rewards = {"counting": listed(Counting.spec)}
            true = 200, json.dumps({"format": FORMAT, "rewards": rewards, "max_body": 10**9}).encode()
            self.reply(*(server.listing or true))

        def do_POST(self) -> None:
            answer = server.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            if callable(answer):
                answer(self)
            else:
                self.reply(*answer)

        def reply(self, status: int, body: bytes, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def good(request: dict[str, Any], **changes: Any) -> tuple[int, bytes]:
    """What a healthy server would answer, or not quite."""
    results = [{"id": sample["id"], "score": 0.5, "reason": None} for sample in request["samples"]]
    answer = {"format": 1, "reward": "counting", "fingerprint": listed(Counting.spec)["fingerprint"]}
    return 200, json.dumps({**answer, "results": results, **changes}).encode()


def results_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    return json.loads(good(request)[1])["results"]


def score(url: str, batch: RewardBatch | None = None, **options: Any) -> RewardOutput:
    """One call of a freshly loaded remote reward."""
    reward = Remote(url, "counting", **{"timeout": 5.0, "patience": 0.0, "startup": 5.0, **options})
    reward.load("cpu", "float32")
    return asyncio.run(reward.ascore(batch or sample_batch(count=3)))


def test_it_keeps_the_contract_and_takes_the_servers_spec() -> None:
    with serving({"tint": RewardEntry(use="colour_match"), "size": RewardEntry(use="jpeg_size")}) as url:
        check_reward(lambda: Remote(url, "size"), sample_batch(count=3))
        reward = Remote(url, "tint")
        reward.load("cpu", "float32")
    assert (reward.spec.name, reward.spec.range) == ("colour_match", (0.0, 1.0))
    assert reward.spec.columns == ("metadata.background",)
    assert reward.spec.network


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (lambda request: (200, good(request)[1][:-20]), "answer: Invalid JSON"),
        (lambda request: (200, b"<html>"), "answer: Invalid JSON"),
        (lambda request: good(request, results=results_of(request)[:-1]), "answer: expected 3 results, found 2"),
        (lambda request: good(request, results=results_of(request) * 2), "answer: expected 3 results, found 6"),
        (lambda request: good(request, results=results_of(request)[::-1]), "answer: results.0.id: expected"),
        (
            lambda request: good(request, results=[{**each, "id": "old"} for each in results_of(request)]),
            "answer: results.0.id: expected .* found old",
        ),
        (
            lambda request: good(request, results=[{**each, "score": float("nan")} for each in results_of(request)]),
            "answer: results.0.score",
        ),
        (
            lambda request: (200, good(request)[1].replace(b"0.5", b"1e999")),
            "answer: results.0.score",
        ),
        (lambda request: (200, good(request)[1].replace(b"0.5", b"9" * 400)), "answer: results.0.score"),
        (lambda request: (200, good(request)[1].replace(b"0.5", b'"0.5"')), "answer: results.0.score"),
        (lambda request: (200, good(request)[1].replace(b"0.5", b"true")), "answer: results.0.score"),
        (lambda request: good(request, reward="other"), "answer: expected scores of 'counting', found 'other'"),
        (lambda request: good(request, details={"seen": [1]}), "answer: details.seen: expected 3 entries, found 1"),
        (
            lambda request: (500, b'{"error": "reward \'counting\': out of memory"}'),
            "500: reward 'counting': out of mem",
        ),
        (lambda request: (500, b'{"error": "in\\ntwo lines"}'), "500: in two lines"),
        (lambda request: (503, b"upstream is away"), "503: upstream is away"),
        (lambda request: lambda handler: handler.reply(200, b"{}", 500), "RemoteProtocolError"),  # type: ignore[attr-defined]
        (lambda request: lambda handler: time.sleep(0.6), "no answer within 0.3 s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_half_broken_answer_is_a_failure_and_never_a_number(script: Any, reason: str) -> None:
    with scripted(script) as (url, _):
        output = score(url, timeout=0.3)
    assert output.scores == [None] * 3
    for found in output.reasons:
        assert found is not None
        assert found.startswith(f"reward server {url}: ")
        assert re.search(reason, found), found


def test_the_step_is_sent_unless_it_is_switched_off() -> None:
    with scripted(good) as (url, server):
        for options in ({}, {"send_step": False}):
            score(url, replace(sample_batch(count=3), step=7), **options)
    assert [request["step"] for request in server.requests] == [7, 0]


def test_no_proxy_stands_before_the_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port()}")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with scripted(good) as (url, _):
        assert score(url).scores == [0.5] * 3


def test_passing_faults_are_tried_again() -> None:
    with scripted(lambda _: (500, b"{}"), lambda _: (503, b""), lambda _: lambda h: h.connection.close(), good) as (
        url,
        server,
    ):
        output = score(url, patience=20.0)
    assert output.scores == [0.5] * 3
    assert len(server.requests) == 4
    ids = [[sample["id"] for sample in request["samples"]] for request in server.requests]
    assert ids[0] == ids[-1], "a retry asks for the same"


def test_a_dead_server_costs_patience_and_then_the_scores() -> None:
    with pytest.raises(RewardError, match=r"found ConnectError.*\(\d+ tries in"):
        score(f"http://127.0.0.1:{closed_port()}", startup=0.3)
    with scripted(good) as (url, _):
        reward = Remote(url, "counting", patience=0.4)
        reward.load("cpu", "float32")
    begun = time.monotonic()
    output = asyncio.run(reward.ascore(sample_batch(count=3)))
    assert output.scores == [None] * 3
    assert "ConnectError" in str(output.reasons[0])
    assert time.monotonic() - begun < 2.0


def test_a_dead_server_is_found_by_the_check_before_any_work() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    composite = Composite({"far": RewardEntry(use="remote", options={"url": url, "reward": "x", "startup": 0.2})})
    with pytest.raises(RewardError) as caught:
        composite.check_servers()
    assert re.fullmatch(
        rf"reward 'far': reward server {url}: expected one that serves the reward 'x', found ConnectError: .* "
        r"\(\d tries in 0\.\d s\); `mentor rewards serve RECIPE` starts one",
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ((404, b"<html>not here</html>"), "404: <html>not here</html>"),
        ((200, b"<html>Welcome</html>"), r"a reply that is no list of rewards \(listing: Invalid JSON"),
        ((200, b'{"format": 1, "rewards": {}, "max_body": 1}'), "others; none is known"),
    ],
)
def test_a_server_of_something_else_is_refused_by_the_check(listing: tuple[int, bytes], found: str) -> None:
    with scripted(good) as (url, server):
        server.listing = listing
        with pytest.raises(RewardError, match=f"{url}: expected one that serves the reward 'counting', found {found}"):
            Remote(url, "counting", patience=20.0).check_server()
        assert (server.listings, server.requests) == (1, [])


def test_load_asks_for_the_rewards_only_where_no_check_was_answered() -> None:
    with scripted(good) as (url, server):
        composite = Composite({"far": RewardEntry(use="remote", options={"url": url, "reward": "counting"})})
        composite.check_servers()
        assert composite.specs["far"].name == "counting"
        with composite:
            assert composite.score(sample_batch(count=2)).raw["far"] == [0.5, 0.5]
            assert server.listings == 1
        with composite:
            assert server.listings == 2
        server.listing = (404, b"gone")
        with pytest.raises(RewardError, match="found 404: gone"):
            composite.check_servers()
        server.listing = None
        with composite:
            assert server.listings == 4


@pytest.mark.parametrize("status", [400, 401, 404, 413])
def test_faults_of_the_settings_stop_the_run(status: int) -> None:
    with scripted(lambda _: (status, b'{"error": "said so"}')) as (url, server):
        with pytest.raises(RewardError, match=f"reward server {url}: {status}: said so"):
            score(url, patience=20.0)
        assert len(server.requests) == 1


def test_another_version_after_a_restart_stops_the_run() -> None:
    changed = scripted(lambda request: good(request, fingerprint="another"))
    with changed as (url, _), pytest.raises(RewardError, match="reward 'counting' changed while this run used it"):
        score(url)


def test_the_direction_of_a_served_reward_is_checked_once_it_is_known() -> None:
    with serving({"size": RewardEntry(use="jpeg_size")}) as url:
        entry = RewardEntry(use="remote", options={"url": url, "reward": "size"})
        for known in (Composite({"far": entry}).load, Composite({"far": entry}).check_servers):
            with pytest.raises(RewardError, match="reward 'far': lower is better, but scale"):
                known()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"url": "127.0.0.1:80", "reward": "x"}, "option 'url': expected http://host:port, found '127.0.0.1:80'"),
        ({"url": "http://u:p@host", "reward": "x"}, "option 'url': expected http://host:port"),
        ({"url": "http://host:x", "reward": "x"}, "option 'url': expected http://host:port"),
        ({"url": "http://host"}, "missing option 'reward'"),
        ({"url": "http://host", "reward": "x", "patience": -1}, "option 'patience'"),
    ],
)
def test_wrong_options_are_said_at_once(options: dict[str, Any], line: str) -> None:
    with pytest.raises(RewardError, match=line):
        Composite({"far": RewardEntry(use="remote", options=options)})


def test_unknown_names_and_missing_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_SERVER", "right")
    monkeypatch.setenv("TOKEN_OF_CLIENT", "wrong")
    entries = {"tint": RewardEntry(use="colour_match")}
    with serving(entries, Settings(port=0, token_env="TOKEN_OF_SERVER")) as url:
        for options, line in (
            (
                {"token_env": "TOKEN_OF_SERVER", "reward": "tin"},
                "reward 'tin', found others; did you mean 'tint'?",
            ),
            ({"token_env": "TOKEN_OF_CLIENT"}, "401: authorization: expected 'Bearer'"),
            ({}, "401: authorization"),
            ({"token_env": "TOKEN_OF_NOBODY"}, "environment variable TOKEN_OF_NOBODY, found none"),
        ):
            with pytest.raises(RewardError) as caught:
                Remote(**{"url": url, "reward": "tint", **options}).load("cpu", "float32")
            assert line in str(caught.value)
        Remote(url, "tint", "TOKEN_OF_SERVER").load("cpu", "float32")


def test_a_batch_above_the_servers_limit_goes_in_parts() -> None:
    entries = {"counting": RewardEntry(use=f"{HERE}:Counting")}
    batch = sample_batch(count=9)
    with serving(entries, Settings(port=0, limits=Limits(body=2_500))) as url:
        assert score(url, batch).scores == [float(image.getpixel((0, 0))[0]) for image in batch.images]  # type: ignore[index]


# ----------------------------------------------------------------------------------------------------------- restart


def start_server(folder: Path, port: int) -> subprocess.Popen[str]:
    """A server process of its own, once it has said its address."""
    command = [sys.executable, "-m", "mentor_rewards", "serve", str(folder / "served.yaml"), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"serving jpeg_size on http://127.0.0.1:{port}\n"
    return process


def test_a_run_survives_the_death_and_return_of_its_server(tmp_path: Path) -> None:
    (tmp_path / "served.yaml").write_text("rewards: {jpeg_size: {role: monitor}}\n")
    port = closed_port()
    batch = sample_batch(count=3)
    options = {"url": f"http://127.0.0.1:{port}", "reward": "jpeg_size", "patience": 60.0}
    entries = {
        "near": RewardEntry(use="jpeg_size", role="monitor"),
        "far": RewardEntry(use="remote", role="monitor", options=options),
    }
    process = start_server(tmp_path, port)
    try:
        with Composite(entries) as composite:
            first = composite.score(batch)
            process.kill()
            process.wait()
            found: list[Any] = []
            run = threading.Thread(target=lambda: found.append(composite.score(batch)))
            run.start()  # scores into the gap
            time.sleep(0.3)
            assert not found
            process = start_server(tmp_path, port)
            run.join(30)
            assert found[0].raw["far"] == first.raw["far"] == first.raw["near"]
            process.send_signal(signal.SIGTERM)
            process.wait(10)
            composite.rewards["far"].patience = 0.2  # type: ignore[union-attr]
            with pytest.raises(RewardFailure, match="reward 'far': 3 of 3 pictures could not be scored"):
                composite.score(batch)
    finally:
        process.kill()
        process.wait()
