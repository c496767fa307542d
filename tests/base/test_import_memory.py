"""Importing a checkpoint and loading the result each take its size of memory and little more."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_process import LIMIT, grown
from mini_reference import ARGUMENTS, ROW, Mini

IMPORT = """
SIZES["mini"] = ast.literal_eval(sys.argv[2])
(folder / "out").mkdir(exist_ok=True)
parts = {"vq": folder / "vq", "tokenizer": folder / "text"}
import_checkpoint(folder / "generator.pt", "mentor", folder / "out", ImportOptions(**parts, dtype=sys.argv[3]))
"""
LOAD = """
touch(load_policy(folder / "out", dtype="stored")[0])
"""


@pytest.mark.slow
def test_import_and_load_take_little_more_than_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROW, "hidden_size", 1024)
    monkeypatch.setitem(ROW, "intermediate_size", 2816)
    monkeypatch.setitem(ROW, "num_hidden_layers", 6)
    mini = Mini(tmp_path, monkeypatch)
    source = mini.save({"model": mini.mentor, "args": ARGUMENTS})
    assert source.stat().st_size > 2.5e8
    for dtype in ("float32", "bfloat16"):
        assert grown(tmp_path, IMPORT, repr(ROW), dtype) < LIMIT * source.stat().st_size
        assert grown(tmp_path, LOAD) < LIMIT * (tmp_path / "out" / "model.safetensors").stat().st_size
