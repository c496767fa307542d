"""``mentor judge serve``: what it prints, how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mentor_rewards.judge_server import healthy

from mentor_rl.cli import main

SCRIPT = """#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_dry_run_prints_the_exact_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "weights", "--name", "judge", "--port", "8001", "--python", "python3", "--pictures", "3"]
    with pytest.raises(SystemExit) as ended:
        main(["judge", "serve", *arguments, "--dry-run", "--", "--tensor-parallel-size", "2"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == (
        "python3 -m vllm.entrypoints.openai.api_server --model weights --served-model-name judge --host 127.0.0.1 "
        '--port 8001 --max-model-len 8192 --limit-mm-per-prompt \'{"image": 3, "video": 0}\' '
        '--mm-processor-kwargs \'{"min_pixels": 65536, "max_pixels": 1048576}\' --tensor-parallel-size 2\n'
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_asked_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "server.py"
    script.write_text(SCRIPT.format(python=sys.executable))
    script.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mentor_rl", "judge", "serve", "--port", str(port), "--python", str(script)]
    process = subprocess.Popen(
        [*command, "--log", str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    assert process.stdout is not None
    assert "vllm.entrypoints" in process.stdout.readline()
    assert process.stdout.readline() == f"ready: http://127.0.0.1:{port}/v1 (log: {tmp_path / 'log'})\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert not healthy(f"http://127.0.0.1:{port}")


def test_a_server_that_dies_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "server.py"
    script.write_text(f"#!{sys.executable}\nraise SystemExit('no module named vllm')\n")
    script.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with pytest.raises(SystemExit) as ended:
        main(["judge", "serve", "--port", port, "--python", str(script), "--log", str(tmp_path / "log")])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line == f"judge server: ended with code 1 at start; last line of {tmp_path / 'log'}: no module named vllm\n"
