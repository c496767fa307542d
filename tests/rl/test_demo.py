"""The demo end to end on the shipped checkpoints, with two steps and four benchmark items."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mentor_base.checkpoint import load_policy
from mentor_rl import demo
from mentor_rl.evaluate.result import Result

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_demo_tunes_measures_exports_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    few = ("items=4", "splits=[unseen_subjects]", "seeds=[0]")
    monkeypatch.setattr(demo, "BENCH", few)
    demo.run_demo(tmp_path / "out", steps=2)
    said = " ".join(capsys.readouterr().out.split())
    for asked in ("without guidance", r"guidance \d and \d"):
        assert re.search(rf"unseen subjects, {asked}: CP [+-][\d.]+% \[", said)
    result = Result.read(tmp_path / "out/bench/results/emojibench.json")
    assert {"before · unseen subjects", "after · unseen subjects"} <= set(result.metrics)
    assert "Before and after" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    before, _ = load_policy("recipes/emoji/checkpoints/stage2")
    after, _ = load_policy(tmp_path / "out/policy")
    changed = [name for name, value in after.state_dict().items() if not value.equal(before.state_dict()[name])]
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def test_demo_outside_of_a_clone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(demo.UserError, match="run this in a clone"):
        demo.run_demo(tmp_path / "out", steps=1)
