"""Importing a checkpoint and loading the result each take its size of memory and little more (read from Linux's /proc).

A child's ``getrusage`` starts at its parent's peak, so it would tell about the test process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mini_reference import ARGUMENTS, ROW, Mini

LIMIT = 1.3  # x the size of the file that is read
START = """
import ast
import sys
from pathlib import Path
from mentor_base.checkpoint import load_policy
from mentor_base.config import SIZES
from mentor_base.interchange.options import ImportOptions
from mentor_base.interchange.importing import import_checkpoint

def resident(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

folder, before = Path(sys.argv[1]), resident("VmRSS")
"""
IMPORT = """
SIZES["mini"] = ast.literal_eval(sys.argv[2])
(folder / "out").mkdir()
options = ImportOptions(vq=folder / "vq", tokenizer=folder / "text")
import_checkpoint(folder / "generator.pt", "mentor", folder / "out", options)
"""
LOAD = """
model, _ = load_policy(folder / "out")
for parameter in model.parameters():
    parameter.detach().view(-1)[::512].sum()  # touch every page
"""
END = "\nprint(resident('VmHWM') - before)"


def grown(folder: Path, work: str) -> int:
    """Bytes by which the peak of a new process lies above what its imports take."""
    command = [sys.executable, "-c", START + work + END, str(folder), repr(ROW)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


@pytest.mark.slow
def test_import_and_load_take_little_more_than_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROW, "hidden_size", 1024)
    monkeypatch.setitem(ROW, "intermediate_size", 2816)
    monkeypatch.setitem(ROW, "num_hidden_layers", 6)
    mini = Mini(tmp_path, monkeypatch)
    source = mini.save({"model": mini.mentor, "args": ARGUMENTS})
    assert source.stat().st_size > 2.5e8
    assert grown(tmp_path, IMPORT) < LIMIT * source.stat().st_size
    assert grown(tmp_path, LOAD) < LIMIT * (tmp_path / "out" / "model.safetensors").stat().st_size
