"""Launching the judge's server: with a script in vllm's place that gets healthy, dies at start, or stays silent."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry, RewardError
from mentor_rewards.judge_server import ServeOptions, healthy, launch, shared_server, stop
from mentor_rewards.testing import sample_batch

SERVER = '''#!{python}
"""Stands for 'python -m vllm...': understands --port, answers /health and every chat with the same scores."""
import json, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

mode, port = "{mode}", int(sys.argv[sys.argv.index("--port") + 1])
print("loading weights", flush=True)
if mode == "dies":
    print("CUDA out of memory\\n", file=sys.stderr, flush=True)
    sys.exit(3)
if mode == "silent":
    time.sleep(600)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("worker", worker.pid, flush=True)
values = {{"description": "a disc", "A": 0.9, "B": 0.8, "C": 0.7, "D": 0.6, "final": 3.0}}

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(200 if self.path == "/health" else 404, b"")
    def do_POST(self):
        model = json.loads(self.rfile.read(int(self.headers["content-length"])))["model"]
        assert model == "judge", model
        message = {{"role": "assistant", "content": json.dumps(values)}}
        choice = {{"index": 0, "finish_reason": "stop", "message": message}}
        body = {{"id": "1", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]}}
        self.reply(200, json.dumps(body).encode())
    def reply(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''


def options(folder: Path, mode: str, start_timeout: float = 60.0) -> ServeOptions:
    """Options whose interpreter is the script."""
    script = folder / f"{mode}.py"
    script.write_text(SERVER.format(python=sys.executable, mode=mode))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ServeOptions(port=port, python=str(script), log=folder / "server.log", start_timeout=start_timeout)


def alive(pid: int) -> bool:
    """Whether a process runs, and is not only waiting to be reaped."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_the_command() -> None:
    command = ServeOptions(port=8001, python="python", arguments=("--tensor-parallel-size", "2")).command("judge")
    assert command[:3] == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    pairs = dict(zip(command[3::2], command[4::2], strict=True))
    assert pairs["--model"] == pairs["--served-model-name"] == "judge"
    assert pairs["--limit-mm-per-prompt"] == '{"image": 2, "video": 0}'
    assert pairs["--mm-processor-kwargs"] == '{"min_pixels": 65536, "max_pixels": 1048576}'
    assert (pairs["--host"], pairs["--port"], pairs["--tensor-parallel-size"]) == ("127.0.0.1", "8001", "2")


def test_a_reward_launches_shares_and_stops_its_server(tmp_path: Path) -> None:
    chosen = options(tmp_path, "healthy")
    serve = {**chosen.model_dump(mode="json"), "model": "weights"}
    entry = RewardEntry(use="qwen_vl_t2i", options={"serve": serve, "model": "judge"})
    with Composite({"one": entry, "two": entry}) as composite:
        assert composite.rewards["one"]._judge.identity == 'judge {"model": "weights"}'  # type: ignore[union-attr]
        found = composite.score(sample_batch(count=3))
        assert found.raw["one"] == found.raw["two"] == [3.0] * 3
        log = (tmp_path / "server.log").read_text().splitlines()
        assert log[1] == "loading weights"
        assert "--model weights --served-model-name judge" in log[0]
        worker = int(log[2].split()[1])
        assert alive(worker)
        assert len(log) == 3  # one server for both
    assert not healthy(chosen.base)
    for _ in range(100):
        if not alive(worker):
            break
        time.sleep(0.1)
    assert not alive(worker)


def test_a_server_that_dies_at_start(tmp_path: Path) -> None:
    with pytest.raises(
        RewardError, match=r"ended with code 3 at start; last line of .*server.log: CUDA out of memory$"
    ):
        shared_server(options(tmp_path, "dies"), "judge")


def test_a_server_that_never_gets_healthy(tmp_path: Path) -> None:
    chosen = options(tmp_path, "silent", start_timeout=1.0)
    with pytest.raises(
        RewardError, match=r"not healthy after 1 s; last line of .*server.log: (loading weights|\(none\))"
    ):
        shared_server(chosen, "judge")
    running = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout
    assert str(tmp_path) not in running


def test_a_taken_port_and_a_missing_interpreter(tmp_path: Path) -> None:
    chosen = options(tmp_path, "healthy")
    with socket.create_server(("127.0.0.1", chosen.port)), pytest.raises(RewardError, match=r"port \d+ is taken"):
        launch(chosen, "judge")
    with pytest.raises(RewardError, match="cannot run nowhere/python: No such file"):
        launch(chosen.model_copy(update={"python": "nowhere/python"}), "judge")


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(
        f"#!{sys.executable}\nimport signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(600)\n"
    )
    script.chmod(0o755)
    process = launch(options(tmp_path, "healthy").model_copy(update={"python": str(script)}), "judge")
    while "deaf" not in (tmp_path / "server.log").read_text():
        time.sleep(0.02)
    stop(process, patience=0.2)
    assert process.returncode == -9
    stop(process)


def test_other_processes_of_a_machine_wait_instead_of_launching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(tmp_path, "healthy")
    first = shared_server(chosen, "judge")
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "1")
    second = shared_server(chosen.model_copy(update={"context": 4096}), "judge")
    assert second.process is None
    assert second.url == first.url
    second.close()
    assert healthy(chosen.base)
    first.close()
    assert not healthy(chosen.base)
