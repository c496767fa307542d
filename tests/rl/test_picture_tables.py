"""Metrics as the table names them; tables of pictures in the run folder and, by public interfaces, in trackers."""

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from grpo_toys import HERE, run_recipe, toy_policy, toy_recipe
from mentor_rewards.aggregate import advantages
from mentor_rewards.composite import Composite
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.settings import Tracker
from mentor_base.trackers import check_trackers
from mentor_rl.monitors.group_files import read_groups
from mentor_rl.monitors.metrics import GRPO, lines_for, meaning_of
from mentor_rl.monitors.tables import SIDE, GroupTable, PictureTable, Row
from mentor_rl.monitors.trackers import to_tensorboard, to_trackio, to_wandb
from mentor_rl.report.groups import groups_trained_on

REWARDS = {
    "brightness": {"use": f"{HERE}:Brightness", "weight": 0.5},
    "redness": {"use": f"{HERE}:Redness", "scale": 10.0, "options": {"every": 3}},
    "watched": {"use": f"{HERE}:Brightness", "role": "monitor"},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return toy_policy(tmp_path_factory.mktemp("toy") / "policy")


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory) -> tuple[Path, list[Any]]:
    """A run of four steps with tables of two groups at steps 1 and 4, and every call of its composite."""
    folder, seen = tmp_path_factory.mktemp("run") / "run", []
    score = Composite.score

    def watched(self, batch, tolerate=False):
        seen.append((batch, score(self, batch, tolerate)))
        return seen[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Composite, "score", watched)
        monitoring = {"every": 3, "prompts": 2, "window": 3, "significance": 0.2, "table": {"groups": 2, "every": 3}}
        algorithm = {"group_size": 4, "prompts_per_step": 3}
        values = toy_recipe(
            policy, folder, 4, rewards=REWARDS, monitoring=monitoring, algorithm=algorithm, failure_rate=1.0
        )
        run_recipe(values)
    return folder, seen


def test_every_metric_of_a_run_is_in_the_table_and_the_table_in_the_run(run) -> None:
    lines = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line}
    assert [name for name in names if meaning_of(name) is None] == []
    absent = {metric.name for metric in GRPO} - {metric.name for metric in lines_for(names)}
    assert absent == {  # only where a recipe asks for them, or on a GPU
        "entropy_coefficient", "vespo_weight", "importance/mean", "importance/capped", "guidance/mean", "memory/device",
    }  # fmt: skip
    assert all(line["memory/host"] > 0.1 and line["tokens_per_second"] > 0 for line in lines if "loss" in line)


def test_groups_are_kept_with_every_score_and_the_advantages_of_the_loss(run) -> None:
    """trl's advantages are those of aggregate.py, over the whole batch; the table shows its first two groups."""
    folder, seen = run
    tables = read_groups(folder)
    assert list(tables) == [1, 4]
    rollouts = [(batch, scores) for batch, scores in seen if len(batch) == 12]
    for kept, (batch, scores) in zip(tables.values(), (rollouts[0], rollouts[3]), strict=True):
        expected = advantages(scores.matrix(), [0.5, 1.0], batch.group_ids)
        assert len(kept) == 8
        assert len({row.uid for row in kept}) == 2
        for i, row in enumerate(kept):
            assert row.text == batch.prompts[i]
            assert row.scores == {name: values[i] for name, values in scores.raw.items()}
            assert row.advantage == pytest.approx(expected[i], abs=2e-4)
            assert Image.open(row.picture).tobytes() == batch.images[i].tobytes()
            assert len(row.references) == len(batch.references[i]) == 1
    assert any(row.scores["redness"] is None for kept in tables.values() for row in kept)
    page = groups_trained_on(tables)
    assert page.count("class='card'") == 4
    assert page.count("data:image/png") == 4 * 5
    best = max(tables[4], key=lambda row: row.advantage)
    assert f"{best.advantage:+.2f}" in page


def test_tables_are_due_at_the_first_rollout_and_then_every_so_many_steps() -> None:
    each, pairs = GroupTable(1, 3), GroupTable(1, 5)
    assert [done for done in range(9) if each.due(done, 1)] == [0, 3, 6]
    assert [done for done in range(0, 16, 2) if pairs.due(done, 2)] == [0, 6, 10]


def table() -> PictureTable:
    """Two groups of two; the second has no reference and a score that is missing."""
    red, large = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (600, 600), "blue")
    rows = (
        Row(7, "a | fox", (red, red), large, {"clip": 0.5}, 1.25),
        Row(7, "a | fox", (red, red), red, {"clip": 0.25}, -1.25),
        Row(9, "a cat", (), red, {"clip": None}, 0.0),
        Row(9, "a cat", (), red, {"clip": 0.125}, None),
    )
    return PictureTable("groups", 26, rows)


@pytest.mark.parametrize(("name", "send"), [("wandb", to_wandb), ("trackio", to_trackio)])
def test_wandb_and_trackio_get_a_table_of_pictures(name, send, monkeypatch) -> None:
    """Their public interface, recorded: Image(PIL), Table(columns=, data=) or Table(dataframe=), log(dict)."""
    logged: list[dict[str, Any]] = []
    recorder: Any = types.ModuleType(name)
    recorder.Image = lambda image: ("image", image.size)
    recorder.Table = lambda columns=None, data=None, dataframe=None: (
        [list(columns), *data] if dataframe is None else [list(dataframe.columns), *dataframe.values.tolist()]
    )
    recorder.log = logged.append
    monkeypatch.setitem(sys.modules, name, recorder)
    send(table())
    ((key, rows), step) = logged[0].items()
    assert (key, step) == ("pictures/groups", ("train/global_step", 26))
    assert rows[0] == ["step", "prompt", "references", "picture", "clip", "advantage"]
    assert rows[1] == [26, "a | fox", ("image", (76, 40)), ("image", (SIDE, SIDE)), 0.5, 1.25]
    assert rows[3][2] is None
    assert len(rows) == 5


def test_tensorboard_gets_a_sheet_and_a_text() -> None:
    calls: dict[str, Any] = {}

    class Writer:
        def add_image(self, tag: str, pixels: Any, step: int, dataformats: str) -> None:
            calls["image"] = (tag, pixels.shape[2], pixels.dtype.name, step, dataformats)

        def add_text(self, tag: str, text: str, step: int) -> None:
            calls["text"] = (tag, text.splitlines(), step)

    to_tensorboard(table(), Writer())
    assert calls["image"] == ("pictures/groups", 3, "uint8", 26, "HWC")
    tag, lines, step = calls["text"]
    assert (tag, step) == ("pictures/groups", 26)
    assert lines[:3] == [
        "| step | prompt | clip | advantage |",
        "| --- | --- | --- | --- |",
        "| 26 | a \\| fox | 0.5 | 1.25 |",
    ]
    assert lines[4] == "| 26 | a cat |  | 0 |"


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(policy, tmp_path, monkeypatch) -> None:
    for name in ("wandb", "tensorboard", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=rf"report_to: .*{name}.*pip install 'mentor-rl\[{name}\]'"):
            check_trackers([name])
    with pytest.raises(UserError, match="report_to"):
        run_recipe(toy_recipe(tmp_path / "no_policy", tmp_path / "run", report_to=["wandb"]))


def test_a_run_reports_to_every_tracker_that_is_installed(policy, tmp_path, monkeypatch) -> None:
    """The real packages, offline: metrics and both tables arrive."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    installed = [name for name in get_args(Tracker) if importlib.util.find_spec(name) is not None]
    run = tmp_path / "run"
    run_recipe(toy_recipe(policy, run, 2, report_to=installed, monitoring={"every": 1, "prompts": 2}))
    if "wandb" in installed:
        (offline,) = (run / "wandb").glob("offline-run-*")
        assert {file.name.split("_")[0] for file in offline.rglob("*.table.json")} == {"fixed", "groups"}
        assert len(list((run / "wandb" / "artifacts" / "staging").iterdir())) >= 8  # the tables' pictures
        assert list(offline.glob("*.wandb"))
    if "tensorboard" in installed:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        assert set(events.Tags()["images"]) == {"pictures/fixed", "pictures/groups"}
        assert {"train/kl", "train/reward"} <= set(events.Tags()["scalars"])
        assert [event.step for event in events.Images("pictures/fixed")] == [0, 1, 2]
    if "trackio" in installed:
        assert any(file.suffix == ".db" for file in (tmp_path / "trackio").rglob("*"))
        assert any(file.suffix == ".png" for file in (tmp_path / "trackio").rglob("*"))
