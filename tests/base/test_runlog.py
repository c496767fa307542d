"""The run folder: what a full disk, a kill or a power cut leaves is what the same command can take up."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mentor_base.callbacks import FiniteGradients, RunLogCallback
from mentor_base.runlog import RunFolder


def test_a_full_disk_leaves_a_folder_that_the_same_command_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            RunFolder.open(tmp_path / "run", {"seed": 1})
    run = RunFolder.open(tmp_path / "run", {"seed": 1})
    run.log(3, loss=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run.rewind(0)
    assert [line["step"] for line in run.metrics()] == [3]
    assert {file.name for file in run.path.iterdir()} == {"recipe.yaml", "manifest.json", "metrics.jsonl"}


def test_time_spent_before_a_stop_counts(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", {"seed": 1})
    run.metrics_file.write_text('{"step": 1, "seconds": 90.5, "cpu_seconds": 170.0}\n{"step": 2, "sec')
    again = RunFolder.open(tmp_path / "run", {"seed": 1})
    assert 90.5 < again.seconds < 100
    assert 170 <= RunLogCallback(again, FiniteGradients()).cpu_seconds < 180


def test_a_kill_between_recipe_and_manifest(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", {"seed": 1})
    (run.path / "manifest.json").unlink()
    assert RunFolder.open(tmp_path / "run", {"seed": 1}).manifest()["seed"] == 1


def test_a_model_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.open(tmp_path / "run", {"seed": 1})
    flushed: set[int] = set()
    sync = os.fsync

    def noted(handle: int) -> None:
        assert not run.final.exists()
        flushed.add(os.fstat(handle).st_ino)
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    with run.writing_final() as folder:
        (folder / "adapter").mkdir(parents=True)
        for name in ("model.safetensors", "adapter/weights"):
            (folder / name).write_bytes(b"x")
    assert {(run.final / name).stat().st_ino for name in ("model.safetensors", "adapter/weights")} == flushed
