"""Two results next to each other: what noise is, and what cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl import gallery
from mentor_rl.cli import main
from mentor_rl.evaluate.compare import compare_sides, read_side
from mentor_rl.evaluate.result import Result

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a result of forty items whose CP is shifted, and returns its file."""
    base = np.linspace(0.2, 0.6, 40)

    def make(name: str, shift: float = 0.0, **changes: Any) -> Path:
        row = {"item": [f"i{i}" for i in range(40)], "CP": (base + shift).tolist(), "PF": [0.5] * 40, "tag": ["x"] * 40}
        noise = np.random.default_rng(0).normal(0.0, 0.1, 40)
        row["style"] = (base + (noise if shift else 0.0)).tolist()
        metrics = {"p · one": {"CP": float(base.mean() + shift)}}
        facts = {"benchmark": "emojibench", "metrics": metrics, "per_item": {"p · one": row}, "judge": "j 1"}
        result = Result(**{**facts, "details": {"policies": ["p"]}, **changes})
        file = tmp_path / name / "results" / "emojibench.json"
        result.write(file)
        return file

    return make


def test_a_change_beyond_noise_is_told_from_noise(write: Write) -> None:
    sides = read_side(write("a"), None), read_side(write("b", 0.05).parent.parent, None)
    rows, how = compare_sides(*sides)
    assert how == "paired over 40 items, 95 % bootstrap; of 20 metrics that do not differ, one will seem to"
    found = {row.metric: row for row in rows}
    assert list(found) == ["CP", "PF", "CP·PF", "CP/PF", "style"]
    assert found["CP"].change == pytest.approx([0.05, 0.05, 0.05])
    assert found["CP"].relative is not None
    assert found["CP"].relative[0] == pytest.approx(0.05 / 0.4)
    assert found["CP·PF"].change == pytest.approx([0.025, 0.025, 0.025])
    assert {name: row.verdict for name, row in found.items()} == {
        "CP": "up",
        "PF": "within noise",
        "CP·PF": "up",
        "CP/PF": "up",
        "style": "within noise",
    }
    unpaired, how = compare_sides(*sides, unpaired=True)
    assert how.startswith("unpaired: 40 items")
    assert unpaired[0].change is not None
    assert unpaired[0].verdict == "within noise"  # a fifth of the spread among items
    assert unpaired[0].change[1] < 0 < unpaired[0].change[2]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"benchmark": "geneval"}, "benchmark: expected that of"),
        ({"judge": "j 2"}, "judge: expected that of"),
        ({"stand_in": True}, "stand_in: expected that of"),
        ({"prompts": "8 of another world"}, "prompts: expected that of"),
        ({"per_item": {"p · one": {"item": ["i0", "z"], "CP": [0.1, 0.2]}}}, "found 2 with 1 others (first: one: z)"),
        ({"per_item": {"p · one": {"item": [f"i{i}" for i in range(40)], "IoU": [0.1] * 40}}}, "expected a metric of"),
    ],
)
def test_what_cannot_be_compared_is_refused(write: Write, changes: dict[str, Any], line: str) -> None:
    sides = read_side(write("a"), None), read_side(write("b", **changes), None)
    with pytest.raises(UserError) as caught:
        compare_sides(*sides)
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_policies_have_to_be_named_where_there_are_several(write: Write) -> None:
    several = {"details": {"policies": ["p", "q"]}}
    with pytest.raises(UserError, match=r"expected one policy, found p, q; name one \(--a, --b\)"):
        read_side(write("a", **several), None)
    with pytest.raises(UserError, match="unknown policy 'pp'; did you mean 'p'"):
        read_side(write("a", **several), "pp")
    file = write("a")
    (file.parent / "geneval.json").write_text(file.read_text())
    with pytest.raises(UserError, match=r"found emojibench.json, geneval.json; name the file"):
        read_side(file.parent.parent, None)
    with pytest.raises(UserError, match="expected a benchmark result"):
        read_side(file.parent, None)


def test_means_alone_have_no_verdict(write: Write) -> None:
    rows, how = compare_sides(
        *(read_side(write(name, per_item={}, metrics={"p": {"FID": value, "note": "x"}}), None)
          for name, value in (("a", 9.0), ("b", 7.5)))
    )  # fmt: skip
    assert [(row.metric, row.verdict) for row in rows] == [("FID", "no interval")]
    assert rows[0].change is not None
    assert rows[0].change[0] == -1.5
    assert "nothing says what is noise" in how


def test_grpo_runs_by_their_fixed_prompts_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Image.new("RGB", (8, 8))
    for name, shift in (("a", 0.0), ("b", 0.2)):
        run = RunFolder.open(tmp_path / name, {"kind": "grpo", "run": name})
        gallery.save_prompts(run, [Prompt(f"a {i}") for i in range(6)])
        for step, gain in ((0, 0.0), (50, shift)):
            scores = [{"style": 0.1 * i + gain, "clip": None if i else 0.5} for i in range(6)]
            gallery.save_step(run, step, [picture] * 6, scores)
    with pytest.raises(SystemExit) as done:
        main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert done.value.code in (0, None)
    out = capsys.readouterr().out
    assert "A: a, step 50" in out
    assert "paired over 6 items, 95 % bootstrap; of 20 metrics that do not differ, one will seem to, of so few" in out
    style = next(line for line in out.splitlines() if line.startswith("style"))
    assert "+0.200 [+0.200, +0.200]  +80.0%  ▲ up" in style
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["metric"] for row in rows] == ["style", "clip"]
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "a"), str(tmp_path / "nowhere")])
    assert "expected a benchmark result (.json), a folder with results/ or a GRPO run" in capsys.readouterr().err


def test_seeds_of_an_item_are_averaged_before_items_are_drawn(write: Write) -> None:
    """Three items with two seeds each: (.1 + .3) / 2, .4 where one seed has no score, and none."""
    row = {"item": ["a", "b", "c"] * 2, "seed": [0] * 3 + [1] * 3, "CP": [0.1, 0.4, None, 0.3, None, None]}
    side = read_side(write("a", per_item={"p": row}, metrics={"p": {"CP": 0.3}}), None)
    assert side.scores is not None
    assert side.scores.items == ("a", "b", "c")
    assert side.scores.columns["CP"] == pytest.approx([0.2, 0.4, float("nan")], nan_ok=True)
    assert side.scores.metrics() == ["CP"]  # the number of a seed is no score


def test_one_item_has_no_verdict(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write(n, per_item={"p · one": {"item": ["i0"], "CP": [cp]}})) for n, cp in (("a", 0.2), ("b", 0.9))]
    with pytest.raises(SystemExit):
        main(["compare", *files])
    line = next(each for each in capsys.readouterr().out.splitlines() if each.startswith("CP "))
    assert line.split() == ["CP", "0.200", "0.900", "+0.700", "no", "interval"]


def test_a_result_by_itself_is_named_by_its_file_and_a_stand_in_is_told(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write("a", stand_in=True).rename(tmp_path / "mine.json")
    with pytest.raises(SystemExit):
        main(["compare", str(file), str(file)])
    out = capsys.readouterr().out
    assert "A: mine: p (" in out
    assert "judge (a stand-in): j 1" in out
