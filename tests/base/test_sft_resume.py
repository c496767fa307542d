"""A stage that is killed with -9 and started again ends bit for bit like one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_stage import STEPS, save_tiny_policy, train_tiny

SCRIPT = Path(__file__).with_name("tiny_stage.py")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def start(*arguments: Any, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss", -1.0), line.get("val/mean", -1.0)) for line in lines]


def test_killed_run_ends_like_an_undisturbed_one(policy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = start(policy, folder, "--kill-in-state", 6)  # between two files of the second state
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (folder / "state" / ".partial" / "checkpoint-6").is_dir()
    assert not (folder / "state" / "checkpoint-6").exists()
    killed = start(policy, folder, "--kill-at", 8)  # from state 3 on, past state 6, into step 9
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "goes on from step 3" in killed.stderr
    finished = start(policy, folder)
    assert finished.returncode == 0, finished.stderr
    assert "goes on from step 6" in finished.stderr
    assert "missing keys" not in finished.stderr  # tied tensors are written once
    whole = train_tiny(policy, tmp_path / "whole")
    assert losses(folder) == losses(whole.path)
    assert len(losses(folder)) == STEPS + 3
    for file in ("final/model.safetensors", f"state/checkpoint-{STEPS}/optimizer.pt"):
        assert (folder / file).read_bytes() == (whole.path / file).read_bytes(), file


@pytest.mark.slow
def test_two_processes_see_what_one_sees(policy: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    both = start(policy, tmp_path / "two", "--no-dropout", launcher=launcher)
    assert both.returncode == 0, both.stderr
    one = start(policy, tmp_path / "one", "--no-dropout")
    assert one.returncode == 0, one.stderr
    pairs = list(zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True))
    assert len(pairs) == STEPS + 3
    for of_two, of_one in pairs:
        assert of_two == pytest.approx(of_one, rel=1e-4)
