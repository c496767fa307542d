"""benchmarks/reward_throughput.py covers every reward with a network; its checkpoints are such as the rewards load."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from mentor_rewards.registry import BUILT_IN

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WITHOUT_ONE_OF_THEIR_OWN = {
    "colour_match",
    "jpeg_size",
    "nsfw_guard",
    "ocr_match",
    "qwen_vl_subject",
    "qwen_vl_t2i",
    "remote",
    "shape_match",
    "style",
    "subject",
}


def test_every_network_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    models = importlib.import_module("reward_throughput").MODELS
    assert {use for use, *_ in models.values()} | {"hpsv2.1"} == set(BUILT_IN) - WITHOUT_ONE_OF_THEIR_OWN


def test_a_row_of_the_table() -> None:
    words = ["--only", "dino_s16", "--pictures", "1", "--calls", "1"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "reward_throughput.py", *words], capture_output=True, text=True, check=True
    )
    row = done.stdout.splitlines()[-1].split("|")
    assert row[1].strip() == "`dino_s16`"
    assert 0 < float(row[3]) < 1000
    assert 0.05 < float(row[5]) < 1  # 22 M parameters in float32
