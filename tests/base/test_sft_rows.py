"""A stage on rows from disk: broken pictures are skipped, counted and named in the run folder, or stop the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from row_files import row, save_pictures, write_jsonl
from tiny_stage import STEPS, save_tiny_policy, train_tiny

from mentor_base.data.broken import read_report
from mentor_base.errors import UserError
from mentor_base.settings import JsonlData, Mixture, Stage, TrainedParts


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def stage(folder: Path, rate: float) -> Stage:
    save_pictures(folder)
    train = write_jsonl(folder, row(target="2.png"), row(target="cut.png"), row(target="3.png"))
    val = write_jsonl(folder, row(target="4.png"), name="val.jsonl")
    data = JsonlData(train=str(train), val=str(val), broken_rate=rate)
    return Stage(name="instruction", mixture=Mixture(data=data, weights={"subject": 1.0}), train=TrainedParts())


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
