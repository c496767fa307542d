"""Rating sheets: one offline page with everything inside, and the CSVs that come back."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from grpo_toys import HERE
from PIL import Image
from test_report import chromium

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.cli import main
from mentor_rl.evaluate.rating import by_picture, read_ratings, write_sheet
from mentor_rl.evaluate.result import Result

HOSTILE = "</script><script>alert(1)</script> a <b>fox</b> \"quoted\" & 'so'"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of t2i_rewards over two folders of pictures, as the runner leaves it."""
    (tmp_path / "prompts.txt").write_text(f"a red fox\n{HOSTILE}\na blue fox\n", encoding="utf-8")
    for row, shade in (("one", "red"), ("two", "blue")):
        (tmp_path / row).mkdir()
        for number in range(3):
            Image.new("RGB", (48, 48), shade).save(tmp_path / row / f"prompt_{number:05d}_0.png")
    recipe = {
        "kind": "evaluate",
        "benchmark": "t2i_rewards",
        "run": str(tmp_path / "run"),
        "images": {row: str(tmp_path / row) for row in ("one", "two")},
        "prompts": str(tmp_path / "prompts.txt"),
        "rewards": {"brightness": {"use": f"{HERE}:Brightness"}},
    }
    RunFolder.open(recipe["run"], recipe)
    return tmp_path / "run"


def cases(sheet: Path) -> list[dict[str, Any]]:
    text = sheet.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    found: list[dict[str, Any]] = json.loads(data)["cases"]
    return found


def test_a_sheet_holds_everything_and_loads_nothing(run: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.html"
    assert write_sheet(run, sheet) == 6
    text = sheet.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "http:" not in text
    assert "https:" not in text
    assert text.count("<script") == 2  # the data and the code: a prompt opens none
    found = cases(sheet)
    assert {case["picture"] for case in found} == {f"{r}/prompt_{n:05d}_0" for r in ("one", "two") for n in range(3)}
    assert {case["text"] for case in found} == {"a red fox", HOSTILE, "a blue fox"}
    assert all(case["image"].startswith("data:image/png;base64,") for case in found)
    assert all([axis["key"] for axis in case["axes"]] == ["PF"] for case in found)  # no reference, no CP


def test_a_smaller_sheet_is_fair_to_the_rows_and_drawn_by_its_seed(run: Path, tmp_path: Path) -> None:
    write_sheet(run, tmp_path / "a.html", count=4)
    write_sheet(run, tmp_path / "b.html", count=4)
    write_sheet(run, tmp_path / "c.html", count=4, seed=5)
    names = [case["picture"] for case in cases(tmp_path / "a.html")]
    assert sorted(name.split("/")[0] for name in names) == ["one", "one", "two", "two"]
    assert names == [case["picture"] for case in cases(tmp_path / "b.html")]
    assert names != [case["picture"] for case in cases(tmp_path / "c.html")]


def test_the_order_of_a_sheet_does_not_tell_the_rows(run: Path, tmp_path: Path) -> None:
    """Rows take turns while pictures are chosen; a rater must not see that."""
    orders = set()
    for seed in range(6):
        write_sheet(run, tmp_path / "sheet.html", seed=seed)
        orders.add("".join(case["picture"][0] for case in cases(tmp_path / "sheet.html")))
    assert len(orders) > 3
    assert not orders <= {"ototot", "tototo"}


def test_sheets_of_other_things_are_refused(grpo_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a benchmark on pictures, found 'grpo'"):
        write_sheet(grpo_run, tmp_path / "x.html")
    with pytest.raises(UserError, match="expected the run folder of a benchmark"):
        write_sheet(tmp_path, tmp_path / "x.html")


DRIVE = """<script>
window.Blob = function (parts) { this.text = parts.join(""); };
URL.createObjectURL = (blob) => { document.title = JSON.stringify({ csv: blob.text, said: window.injected === undefined,
  place: byId("place").textContent, wide: document.documentElement.scrollWidth > window.innerWidth }); return "#"; };
HTMLAnchorElement.prototype.click = () => {};
const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
localStorage.clear();
byId("rater").value = 'Anna "A", B';
begin();
["3", "9", "0", "ArrowLeft", "2", "ArrowLeft", "ArrowRight"].forEach(press);
save();
</script></body>"""


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine; the page's structure is tested above")
def test_a_sheet_is_filled_by_keyboard_and_saves_a_csv(run: Path, tmp_path: Path) -> None:
    """3 for the first picture, 0 for the second, back and changed to 2; 9 is no score. The CSV comes back whole."""
    write_sheet(run, tmp_path / "sheet.html")
    text = (tmp_path / "sheet.html").read_text(encoding="utf-8").replace("</body>", DRIVE)
    (tmp_path / "driven.html").write_text(text, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom"]
    command = [str(chromium()), *options, (tmp_path / "driven.html").as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    (title,) = re.findall("<title>(.*?)</title>", page, re.DOTALL)
    out = json.loads(html.unescape(title))
    assert out["said"]
    assert not out["wide"]
    assert out["place"] == "Picture 3 of 6, 2 rated"
    (tmp_path / "saved.csv").write_text(out["csv"], encoding="utf-8", newline="")
    names = [case["picture"] for case in cases(tmp_path / "sheet.html")]
    found = read_ratings([tmp_path / "saved.csv"])
    assert [(each.rater, each.picture, each.score) for each in found] == [
        ('Anna "A", B', names[0], 3),
        ('Anna "A", B', names[1], 2),
    ]


def ratings(folder: Path, name: str, lines: str, header: str = "rater,picture,axis,score") -> Path:
    file = folder / f"{name}.csv"
    file.write_text(f"{header}\r\n{lines}\r\n", encoding="utf-8")
    return file


def test_the_command_prints_alpha_and_consistency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"anna": [3, 1, 4, 0], "ben": [3, 2, 4, 0], "cleo": [3, 1, 4, 1]}
    files = [
        ratings(tmp_path, name, "\r\n".join(f"{name},fox/i{n}_0,CP,{score}" for n, score in enumerate(given)))
        for name, given in scores.items()
    ]
    columns = {"item": ["i0", "i1", "i2", "i3"], "seed": [0] * 4, "CP passes": [[3, 3, 2], [1, 1, 1], [2, 3, 3], [0]]}
    Result("dreambench_plus", {}, {"fox": columns}, judge="a judge").write(tmp_path / "result.json")
    arguments = ["--result", str(tmp_path / "result.json"), "--out", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit) as end:
        main(["rate", "import", *map(str, files), *arguments])
    assert end.value.code in (None, 0)
    shown = capsys.readouterr().out
    assert "4 x 3" in shown
    assert "judge: a judge" in shown
    assert "MENTOR, other pictures and raters" in shown
    assert "75.0%" in shown  # the third picture: 4 said the raters, 3 the judge
    found = json.loads((tmp_path / "out.json").read_text())["CP"]
    assert found["consistency"]["near"] == 1.0
    assert 0.8 < found["alpha"]["ordinal"]["value"] < 1.0
    assert found["alpha"]["ordinal"]["low"] <= found["alpha"]["ordinal"]["value"]
    Result("dreambench_plus", {}, {"fox": columns}, judge="a judge", stand_in=True).write(tmp_path / "result.json")
    with pytest.raises(SystemExit):
        main(["rate", "import", *map(str, files), *arguments])
    shown = capsys.readouterr().out
    assert "judge (a stand-in): a judge" in shown
    assert "MENTOR" not in shown


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        ("a,x,CP,5", None, "r.csv:2: score: expected a whole number from 0 to 4, found '5'"),
        ("a,x,CP,2.5", None, "found '2.5'"),
        ("a,x,CQ,2", None, "r.csv:2: axis: unknown 'CQ'; did you mean 'CP'?"),
        ("a,x,CP", None, "r.csv:2: expected 4 cells"),
        ("a,x,CP,1,2", None, "r.csv:2: expected 4 cells"),
        (",x,CP,1", None, "expected a rater and a picture"),
        ("a,x,CP,1\r\na,x,CP,2", None, "r.csv:3: a rated CP of x before, in"),
        ("a,x,CP,", None, "expected ratings, found none"),
        (
            "a,x,1",
            "rater,picture,score",
            "expected the columns rater, picture, axis, score, found rater, picture, score",
        ),
    ],
)
def test_bad_ratings_are_one_line(tmp_path: Path, lines: str, header: str | None, message: str) -> None:
    file = ratings(tmp_path, "r", lines, header or "rater,picture,axis,score")
    with pytest.raises(UserError) as caught:
        read_ratings([file])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_scores_are_no_ratings(tmp_path: Path) -> None:
    file = ratings(tmp_path, "r", "a,x,CP,1\r\na,y,CP,\r\nb,x,CP,0")
    assert by_picture(read_ratings([file]), "CP") == {"x": [1, 0]}
