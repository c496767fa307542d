"""A stage on rows from disk: broken pictures are skipped, counted and named in the run folder, or stop the run."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from row_files import row, save_pictures, write_jsonl
from tiny_stage import STEPS, also, save_tiny_policy, train_tiny
from transformers import TrainerCallback

import mentor_base.sft
from mentor_base.data.broken import read_report
from mentor_base.data.rows import BrokenPicture
from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted
from mentor_base.settings import JsonlData, Mixture, Stage, TrainedParts


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def stage(folder: Path, rate: float, *more: dict[str, Any], workers: int = 0) -> Stage:
    save_pictures(folder)
    train = write_jsonl(folder, row(target="2.png"), row(target="cut.png"), row(target="3.png"), *more)
    val = write_jsonl(folder, row(target="4.png"), name="val.jsonl")
    data = JsonlData(train=str(train), val=str(val), broken_rate=rate)
    mixture = Mixture(data=data, weights={"subject": 1.0})
    return Stage(name="instruction", mixture=mixture, train=TrainedParts(), workers=workers)


class SignalAt(TrainerCallback):
    """Asks for a stop in step 5, workers too, as a job's end does."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            job = [os.getpid(), *(worker.pid for worker in multiprocessing.active_children())]
            subprocess.run(["kill", "-TERM", *map(str, job)], check=True)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_and_a_stop_within_a_pass_change_nothing(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps of four rows end in the third pass through seven rows, one of which is broken."""
    more = [row(target=f"{k}.png", text=f"<image> {k}") for k in (0, 1, 2, 4)]
    alone = train_tiny(policy, tmp_path / "alone", stage=stage(tmp_path, 1, *more))
    spread = stage(tmp_path, 1, *more, workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(mentor_base.sft, "run_callbacks", also(SignalAt()))
        with pytest.raises(Interrupted, match="stopped at step 5 of 9"):
            train_tiny(policy, tmp_path / "run", stage=spread)
    run = train_tiny(policy, tmp_path / "run", stage=spread)
    assert (run.final / "model.safetensors").read_bytes() == (alone.final / "model.safetensors").read_bytes()
    assert read_report(run.broken_file) == read_report(alone.broken_file)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_faults_of_rows_are_one_line_from_workers_too(policy: Path, tmp_path: Path, workers: int) -> None:
    long = row(text="<image> " + "a fox on a hill " * 60)
    for rate, more, kind, line in (
        (0, (), BrokenPicture, "rows.jsonl:2: target: expected a readable picture, found "),
        (1, (long,), UserError, "rows.jsonl:4: expected at most 160 prefix slots, found "),
    ):
        with pytest.raises(kind) as caught:
            train_tiny(policy, tmp_path / f"run{rate}", stage=stage(tmp_path, rate, *more, workers=workers))
        assert str(caught.value).startswith(f"{tmp_path}/{line}")
        assert "\n" not in str(caught.value)


def test_what_validation_lacks_is_found_before_the_policy_is_read(tmp_path: Path) -> None:
    rows = stage(tmp_path, 1)
    data = rows.mixture.data.model_copy(update={"val": None})
    without = rows.model_copy(update={"mixture": rows.mixture.model_copy(update={"data": data})})
    with pytest.raises(UserError, match="expected a split of train, found 'val'; name its files under val"):
        train_tiny(tmp_path / "no_policy", tmp_path / "run", stage=without)


def test_a_stage_skips_broken_rows_and_names_them(policy: Path, tmp_path: Path) -> None:
    run = train_tiny(policy, tmp_path / "run", stage=stage(tmp_path, rate=1))
    assert run.finished
    assert [line["picture"] for line in read_report(run.broken_file)] == ["target"]
    assert run.manifest()["broken_rows"] == 1
    assert [line["step"] for line in run.metrics() if "loss" in line][-1] == STEPS


def test_a_stage_stops_when_too_many_are_broken(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected at most 1.00% of the rows with broken pictures .* named in .*run/"):
        train_tiny(policy, tmp_path / "run", stage=stage(tmp_path, rate=0.01))
    assert not (tmp_path / "run" / "final").exists()
