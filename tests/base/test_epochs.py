"""A stage's length in epochs: known answers, a whole run, and what cannot be counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from row_files import row, save_pictures, write_jsonl
from tiny_stage import open_run, save_tiny_policy, train_tiny

from mentor_base.data.sources import RowWorld
from mentor_base.epochs import in_steps, steps_of
from mentor_base.errors import UserError
from mentor_base.settings import JsonlData, Mixture, Stage, StageOptimisation, TrainedParts


@pytest.mark.parametrize(
    ("epochs", "rows", "batch", "steps"),
    [
        (1, 2_480_000, 128, 19_375),
        (2, 1_300_000, 128, 20_313),  # 20,312.5: the last batch is filled from the next pass
        (10, 3, 2, 15),
        (0.5, 3, 2, 1),
        (0.1, 30, 3, 1),  # 0.1 * 30 / 3 in floats is more than 1
    ],
)
def test_steps_of_epochs(epochs: float, rows: int, batch: int, steps: int) -> None:
    assert steps_of(epochs, rows, batch) == steps


def test_either_steps_or_epochs() -> None:
    for length in ({}, {"steps": 5, "epochs": 1}):
        with pytest.raises(ValidationError, match="give either steps or epochs"):
            StageOptimisation(lr=1, batch=1, **length)
    assert StageOptimisation(lr=1, batch=1, steps=5).steps == 5


def mixture(folder: Path, rows: list[dict[str, Any]], **weights: float) -> Mixture:
    save_pictures(folder)
    data = JsonlData(train=str(write_jsonl(folder, *rows)), val=str(write_jsonl(folder, *rows, name="val.jsonl")))
    return Mixture(data=data, weights=weights)  # type: ignore[arg-type]


def test_an_epoch_has_the_rows_of_the_mixture_alone(tmp_path: Path) -> None:
    rows = [row(), row(), row(task="editing"), row(task="t2i", text="a fox", images=[])]
    mixed = mixture(tmp_path, rows, subject=0.9, editing=0.1)
    world = RowWorld(mixed.data)  # type: ignore[arg-type]
    run = open_run(tmp_path / "run")
    length = in_steps(StageOptimisation(lr=1, batch=2, epochs=3), mixed, world, run)
    assert length.steps == 5
    assert run.manifest()["epoch_plan"] == {"rows": 3, "epochs": 3.0, "steps": 5}


def test_a_stage_of_two_epochs_and_rows_that_change_under_it(tmp_path: Path) -> None:
    policy = save_tiny_policy(tmp_path / "policy")
    stage = Stage(
        name="instruction", mixture=mixture(tmp_path, [row()] * 5, subject=1), train=TrainedParts(decoder=False)
    )
    optimisation = StageOptimisation(lr=1e-3, batch=4, epochs=2, threads=1)
    run = train_tiny(policy, tmp_path / "run", stage=stage, optimisation=optimisation)
    assert run.finished
    assert run.manifest()["steps"] == 3
    (run.final / "config.json").unlink()
    write_jsonl(tmp_path, *[row()] * 6)
    with pytest.raises(UserError, match="expected the 5 rows that this run began with, found 6"):
        train_tiny(policy, tmp_path / "run", stage=stage, optimisation=optimisation)


def test_the_emoji_world_has_no_epoch(tmp_path: Path) -> None:
    policy = save_tiny_policy(tmp_path / "policy")
    with pytest.raises(UserError, match="found a world without end"):
        train_tiny(policy, tmp_path / "run", optimisation=StageOptimisation(lr=1e-3, batch=4, epochs=1))
