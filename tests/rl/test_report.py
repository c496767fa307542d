"""The report: self-contained, escaped, and complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl import gallery
from mentor_rl.evaluate.result import Result
from mentor_rl.plot import line_chart, scatter_chart
from mentor_rl.report import write_report

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.open(tmp_path / "toy", {"kind": "grpo", "run": "toy", "seed": 3, "about": HOSTILE})
    for step in range(1, 6):
        run.log(step, reward=0.1 * step, kl=0.01 * step, **{"rewards/style/mean": 0.2 * step, "gap/mean": float("nan")})
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    gallery.save_prompts(run, [Prompt(f"<image> {HOSTILE}", (red,))])
    for step, value in ((0, 0.25), (3, 0.5), (5, 0.75)):
        gallery.save_step(run, step, [blue], [{"style": value, "subject": None}])
    Result(
        benchmark="emojibench",
        metrics={"before": {"CP": [0.5, 0.4, 0.6], "PF": 0.4}, "after": {"CP": [0.6, 0.5, 0.7], "PF": 0.5}},
        judge="toy",
        seeds=(0, 1),
    ).write(run.result_path("emojibench"))
    return run


def test_report_shows_curves_pictures_and_tables_and_loads_nothing(run: RunFolder, tmp_path: Path) -> None:
    page = write_report([run.path], tmp_path / "out.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    for heading in ("Before and after", "Fixed prompts over time", "Curves", "emojibench", "Resolved recipe"):
        assert heading in page
    assert page.count("<polyline") >= 3
    assert "0.500 <small>[0.400, 0.600]</small>" in page
    assert "<td>0.250</td><td class='up'>0.750</td>" in page


def grpo_run(folder: Path, evidence: list[float], monitor: bool = True) -> str:
    """The report of a run of 20 steps with this evidence in the last of them."""
    held_out = {"watched": {"role": "monitor"}} if monitor else {}
    recipe = {
        "kind": "grpo",
        "seed": 0,
        "rewards": {"clip": {"role": "train"}, **held_out},
        "monitoring": {"window": 10, "significance": 1e-3},
    }
    run = RunFolder.open(folder, recipe)
    for step in range(1, 21):
        late = step - 21 + len(evidence)
        found = {"hacking/watched": evidence[late]} if monitor and late >= 0 else {}
        copies = {"copies/share": 0.04 if step < 10 else 0.5, "diversity": 0.9, "diversity_pixels": 0.25}
        run.log(step, reward=0.1 * step, **{"rewards/clip/mean": 0.1 * step}, **found, **copies)
    return write_report([folder], folder / "report.html").read_text(encoding="utf-8")


def test_monitors_speak_in_sentences_and_alarms_are_marked(tmp_path: Path) -> None:
    page = grpo_run(tmp_path / "bad", [0.5, 3.2, 4.0, 2.0])
    alarm = (
        "Alarm at step 18: over the 10 steps before it the trained rewards rose while the held-out &#x27;watched&#x27;"
    )
    assert f"<li class=alarm>{alarm} fell, each beyond chance (p &lt; 0.001); so it was in 2 of 4 windows" in page
    assert page.count('class="mark"') == 3  # the weighted sum, the means, the evidence
    assert "Copies: 4% of the pictures at first and 50% at last" in page
    assert "differed in 90% of their tokens at first, 90% at last; their pixels lay 0.250 apart" in page
    page = grpo_run(tmp_path / "good", [0.5, 3.0])
    assert "No alarm: in no 10 steps did the trained rewards rise while &#x27;watched&#x27; fell." in page
    assert 'class="mark"' not in page
    assert "No held-out reward (role: monitor)" in grpo_run(tmp_path / "blind", [], monitor=False)


def test_text_of_a_run_stays_text(run: RunFolder, tmp_path: Path) -> None:
    page = write_report([run.path], tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run folder"):
        write_report([tmp_path], tmp_path)


def test_gallery_round_trip(run: RunFolder) -> None:
    shown = gallery.read(run.path)
    assert shown is not None
    assert shown.steps == (0, 3, 5)
    assert shown.scores[5] == ({"style": 0.75, "subject": None},)
    assert shown.prompts[0].references[0].exists()


def test_charts_leave_out_what_is_not_finite_and_place_points_where_they_belong() -> None:
    assert line_chart("empty", {"a": [(0, float("nan"))]}) == ""
    svg = scatter_chart("cp pf", {"low": (0.1, 0.1), "high": (0.9, 0.9)}, "PF", "CP")
    (x1, y1), (x2, y2) = [tuple(map(float, p)) for p in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert x1 < x2
    assert y1 > y2  # SVG's y axis points down
