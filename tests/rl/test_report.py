"""The report: self-contained, escaped, and complete."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from PIL import Image

from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl import gallery
from mentor_rl.ablation.outcome import ArmOutcome, Cell, Outcome
from mentor_rl.evaluate.result import Result
from mentor_rl.plot import COLOURS, HEIGHT, TOP, WIDTH, heat_map, line_chart, scatter_chart
from mentor_rl.plot_labels import Box, place_labels
from mentor_rl.report.benchmarks import published_table, results_together
from mentor_rl.report.page import write_report

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
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
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
    assert f"<li class=alarm>{alarm} got worse, each beyond chance (p &lt; 0.001); so it was in 2 of 4 windows" in page
    assert page.count('class="mark"') == 3  # the weighted sum, the means, the evidence
    assert "Copies: 4% of the pictures at first and 50% at last" in page
    assert "differed in 90% of their tokens at first, 90% at last; their pixels lay 0.250 apart" in page
    page = grpo_run(tmp_path / "good", [0.5, 3.0])
    assert "No alarm: in no 10 steps did the trained rewards rise while &#x27;watched&#x27; got worse." in page
    assert 'class="mark"' not in page
    assert "No held-out reward (role: monitor)" in grpo_run(tmp_path / "blind", [], monitor=False)


def test_a_run_says_how_long_it_took(run: RunFolder, tmp_path: Path) -> None:
    with run.metrics_file.open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "seconds": 90.0}\n')
    assert "<b>1.5</b><span>minutes</span>" in write_report([run.path], tmp_path).read_text(encoding="utf-8")


def test_text_of_a_run_stays_text(run: RunFolder, tmp_path: Path) -> None:
    page = write_report([run.path], tmp_path).read_text(encoding="utf-8")
    assert page.count("<script") == 1  # our own
    assert "&lt;script&gt;" in page
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_a_folder_that_is_no_run_is_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run folder"):
        write_report([tmp_path], tmp_path)
    with pytest.raises(UserError, match="given twice"):
        write_report([run.path, run.path], tmp_path)


def second_run(folder: Path, colour: str = "green", prompts: Sequence[str] = ("<image> a kite",)) -> RunFolder:
    """A run like ``run``, with other curves and the fixed prompts of ``prompts``."""
    other = RunFolder.open(folder, {"kind": "grpo", "run": str(folder), "seed": 4})
    for step in range(1, 6):
        other.log(step, reward=0.3 * step, kl=0.02 * step, flat=1.0)
    picture = Image.new("RGB", (64, 64), colour)
    gallery.save_prompts(other, [Prompt(text, (picture,)) for text in prompts])
    gallery.save_step(other, 5, [picture] * len(prompts), [{"style": 0.125}] * len(prompts))
    return other


def test_runs_stand_side_by_side(run: RunFolder, tmp_path: Path) -> None:
    other = second_run(tmp_path / "x" / "toy", prompts=(f"<image> {HOSTILE}", "<image> only here"))
    result = tmp_path / "loose.json"
    Result("emojibench", {"mine": {"CP": [0.7, 0.6, 0.8], "PF": 0.25}}, judge="toy").write(result)
    page = write_report([run.path, other.path, result], tmp_path / "out.html").read_text(encoding="utf-8")
    together = page.partition("id='together'")[2].partition("</section>")[0]
    assert together.count("class='card'") == 1  # the prompt that both have
    assert "only here" not in together
    assert "only here" not in page.partition("id='together'")[0]
    pictures = re.findall(r'<img alt="([^"]*)"', together)
    assert pictures == ["reference", f"{tmp_path.name}/toy", "x/toy"]
    assert "<td>style</td><td>0.750</td><td>0.125</td>" in together
    charts = together.partition("Curves")[2]
    assert charts.count("<svg xmlns") == 2  # reward and kl: nothing else is in both, or changes
    colours = re.findall(r'stroke="(#\w+)"', charts.partition("<div")[2])
    assert {colour: colours.count(colour) for colour in COLOURS[:2]} == {COLOURS[0]: 4, COLOURS[1]: 4}
    table = together.partition("emojibench, together")[2].partition("</table>")[0]
    assert f"{tmp_path.name}/toy: before" in table
    assert "loose.json: mine" in table
    assert page.count("<section") == 4


def test_an_ablation_is_shown_with_its_matrix_and_its_arms_pictures(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "abl", {"kind": "ablate", "run": "abl"}).path
    with pytest.raises(UserError, match="no result yet"):
        write_report([folder], tmp_path)
    arms = {}
    for name, cp, verdict in (("full", 0.5, ""), (HOSTILE, 0.6, "up")):
        second_run(folder / "arms" / str(len(arms)))
        change = {"change": [0.1, 0.05, 0.15], "over_seeds": [0.1, 0.02, 0.18], "verdict": verdict} if verdict else {}
        cells = {"CP": Cell(cp, {"0": cp, "1": cp + 0.02}, [0.4, 0.7], **change), "PF": Cell(0.4, {"0": 0.4, "1": 0.4})}
        trained = ("style",) if name == "full" else ("clip",)
        panels = {"benchmark": cells, "rewards": {"style": Cell(0.2, {"0": 0.2})}}
        arms[name] = ArmOutcome({"grpo.seed": HOSTILE}, trained, (0, 1), panels, {"0": f"arms/{len(arms)}"})
    outcome = Outcome("abl", HOSTILE, "full", (0, 1), arms, ("full/seed1/benchmark",), {"judge": HOSTILE})
    outcome.write(folder / "results" / "ablation.json")
    assert Outcome.read(folder / "results" / "ablation.json") == outcome
    page = write_report([folder], tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1
    assert "Not finished: full/seed1/benchmark." in page
    assert "+0.100 ▲" in page  # the heat map
    assert "<small class='up'>+0.100 up<br>[+0.050, +0.150]<br>(+0.020, +0.180)</small>" in page
    assert page.count("class='held'") == 1
    assert page.count('class="point"') == 2
    assert page.count("class='card'") == 1
    assert "+0.100 [+0.050, +0.150] (+0.020, +0.180) up" in outcome.markdown()
    assert "**0.200**" in outcome.markdown()


def chromium() -> str | None:
    """A browser's binary, its wrapper scripts left aside; None where none is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
    found = [Path("/usr/lib/chromium/chromium"), *(Path(each) for each in map(shutil.which, names) if each)]
    return next((str(each) for each in found if each.exists()), None)


CHECKS = """
<script>
const keys = (key, on) => on.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const all = Array.from(document.querySelectorAll(".card")), field = document.getElementById("search"), out = {};
out.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
all[0].focus();
keys("ArrowRight", document.activeElement);
out.moved = document.activeElement === all[1];
keys("Home", document.activeElement);
out.home = document.activeElement === all[0];
keys("/", document.activeElement);
out.search = document.activeElement === field;
out.outline = getComputedStyle(field).outlineStyle;
field.value = "ONLY here";
field.dispatchEvent(new Event("input"));
out.left = all.filter((card) => card.offsetParent !== null).length;
out.count = document.getElementById("count").textContent;
keys("Escape", field);
out.back = all.filter((card) => card.offsetParent !== null).length === all.length;
out.injected = Boolean(window.injected);
out.loaded = performance.getEntriesByType("resource").filter((each) => !each.name.startsWith("data:")).length;
document.title = JSON.stringify(out);
</script>
"""


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine; the page's structure is tested above")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser(run: RunFolder, tmp_path: Path, width: int) -> None:
    """Keys, search, focus and width, in an <iframe> of that width: headless windows are at least 500 pixels wide."""
    hostile = '<img src=x onerror="window.injected=1">'
    others = [second_run(tmp_path / f"run_{i}", prompts=(f"<image> {hostile}", "<image> only here")) for i in range(5)]
    page = write_report([run.path, *(each.path for each in others)], tmp_path / "out.html").read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', page)
    assert policy is not None
    checked = page.replace(policy[0], "").replace("</body>", f"{CHECKS}</body>")  # the policy forbids our checks, too
    (tmp_path / "checked.html").write_text(checked, encoding="utf-8")
    frame = f"""<iframe src="checked.html" style="width:{width}px;height:900px;border:0"></iframe>
    <script>onload = () => {{ document.body.textContent = frames[0].document.title; }}</script>"""
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--virtual-time-budget=3000",
    ]
    local = ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000"]
    command = [str(chromium()), *options, *local, "--dump-dom", (tmp_path / "frame.html").as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<body>(.*?)</body>", dumped, re.DOTALL)
    assert found is not None
    out = json.loads(html.unescape(found[1].strip()))
    assert out == {
        "wide": 0,
        "moved": True,
        "home": True,
        "search": True,
        "outline": "solid",
        "back": True,
        "left": 1,
        "count": "1 of 4",
        "injected": False,
        "loaded": 0,
    }


def test_gallery_round_trip(run: RunFolder) -> None:
    shown = gallery.read(run.path)
    assert shown is not None
    assert shown.steps == (0, 3, 5)
    assert shown.scores[5] == ({"style": 0.75, "subject": None},)
    assert shown.prompts[0].references[0].exists()
    gallery.save_prompts(run, [Prompt("<image> a fox", (Image.new("RGB", (3000, 1500)),))])
    shown = gallery.read(run.path)
    assert shown is not None
    assert Image.open(shown.prompts[0].references[0]).size == (512, 256)


def test_a_benchmark_s_rows_stand_side_by_side(run: RunFolder, tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    prompts = [Prompt("<image> this fox", (red,)), Prompt(f"<image> {HOSTILE}", (red,))]
    rows = {"before": ([red] * 2, [{"CP": 0.1}] * 2), "after": ([blue] * 2, [{"CP": 0.7}, {"CP": None}])}
    folder = run.path / "results" / "pictures" / "unseen_pairs"
    gallery.save_rows(folder, prompts, rows)
    kept = gallery.read_rows(folder)
    assert list(kept) == ["before", "after"]
    assert kept["after"].scores[0] == ({"CP": 0.7}, {"CP": None})
    page = write_report([run.path], tmp_path).read_text(encoding="utf-8")
    shown = page.partition("Pictures: unseen pairs")[2].partition("<h2>")[0]
    assert shown.count("class='card'") == 2
    assert "<td>CP</td><td>0.100</td><td>0.700</td>" in shown


def test_benchmarks_of_several_runs_stand_side_by_side_and_gaps_are_told(tmp_path: Path) -> None:
    shade, folders = {"one": "red", "two": "blue"}, []
    for name, colour in shade.items():
        run = RunFolder.open(tmp_path / name, {"kind": "evaluate", "run": name})
        images, scores = [Image.new("RGB", (8, 8), colour)], [{"CP": 0.5}]
        gallery.save_rows(run.path / "results" / "pictures" / "seen", [Prompt("a fox")], {"fox": (images, scores)})
        facts = {"judge": "j", "coverage": {"items": 9, "scored": 8}, "details": {"items": 9, "all items": 9}}
        Result("dreambench_plus", {"fox": {"CP": 0.5, "PF": 0.5}}, **facts).write(run.result_path("dreambench_plus"))
        folders.append(run.path)
    page = write_report(folders, tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("class='card'") == 1 + 2  # together, and each run's own
    assert "<span>one: fox</span>" in page
    assert "<span>two: fox</span>" in page
    assert "8 of 9 pictures scored" in page
    assert "Published numbers are left out. dreambench_plus: not all pictures were scored" in page


def test_results_on_other_prompts_are_not_put_together() -> None:
    """As `mentor compare` refuses them. What stands together tells the seeds and the notes of all."""

    def result(cp: float, prompts: str, seed: int, note: str) -> Result:
        return Result("emojibench", {"fox": {"CP": cp}}, judge="j", prompts=prompts, seeds=(seed,), notes=(note,))

    alike = {"a": result(0.125, "8", 0, "first"), "b": result(0.25, "8", 7, "second")}
    shown = results_together([*alike.items(), ("c", result(0.5, "96", 0, "third"))])
    assert "a: fox" in shown
    assert "b: fox" in shown
    assert "c: fox" not in shown
    assert "Seeds: [0], [7]." in shown
    assert "<li>first</li><li>second</li>" in shown


def test_all_results_of_a_folder_are_compared(tmp_path: Path) -> None:
    runs = [RunFolder.open(tmp_path / name, {"kind": "evaluate", "run": name}) for name in ("one", "two")]
    for benchmark in ("emojibench", "geneval"):
        for run in runs:
            Result(benchmark, {"fox": {"CP": 0.5}}, judge="j").write(run.result_path(benchmark))
    page = write_report([run.path for run in runs], tmp_path / "out.html").read_text(encoding="utf-8")
    for benchmark in ("emojibench", "geneval"):
        together = page.partition(f"<h2>{benchmark}, together</h2>")[2].partition("</table>")[0]
        assert "one: fox" in together
        assert "two: fox" in together


def test_published_rows_stand_above_ours() -> None:
    scored = {"items": 1350, "scored": 1350}
    result = Result("dreambench_plus", {"fox": {"CP": 0.5}}, coverage=scored, checkpoints={"fox": "x"})
    shown = published_table(result)
    assert "MENTOR, table 1" in shown
    assert shown.index("DreamBooth") < shown.index("<b>fox (ours)</b>")
    assert "The paper's judge is" in html.unescape(shown)
    assert published_table(Result("t2i_rewards", {})) == ""


def test_published_rows_stand_above_an_ablation_s_arms(tmp_path: Path) -> None:
    arms = {HOSTILE: ArmOutcome({}, (), (42,), {"benchmark": {"CP": Cell(0.5, {"42": 0.5})}})}
    facts = {"benchmark": "dreambench_plus", "judge": HOSTILE, "pictures": 1350, "published": "guidance"}

    def page(**changes: object) -> str:
        outcome = Outcome("abl", "", "x", (42,), arms, (), {**facts, **changes})
        folder = RunFolder.open(tmp_path / f"abl{len(changes)}", {"kind": "ablate", "run": "abl"}).path
        outcome.write(folder / "results" / "ablation.json")
        return write_report([folder], tmp_path / "out.html").read_text(encoding="utf-8")

    shown = page()
    assert "<h3>MENTOR, table 10: " in shown
    assert "0.557" in shown
    assert shown.index("0.557") < shown.index(f"{html.escape(HOSTILE)} (ours)")
    assert HOSTILE not in shown
    refused = page(stand_in=True)
    assert f"Published numbers are left out: judged by a stand-in ({html.escape(HOSTILE)})." in refused
    assert "0.557" not in refused
    assert "Beside the paper" not in page(stand_in=False, published=None)


def test_charts_leave_out_what_is_not_finite_and_place_points_where_they_belong() -> None:
    assert line_chart("empty", {"a": [(0, float("nan"))]}) == ""
    svg = scatter_chart("cp pf", {"low": (0.1, 0.1), "high": (0.9, 0.9)}, "PF", "CP")
    (x1, y1), (x2, y2) = [tuple(map(float, p)) for p in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert x1 < x2
    assert y1 > y2  # SVG's y axis points down
    close = scatter_chart("cp pf", {"a": (0.50, 0.40), "b": (0.52, 0.41)}, "PF", "CP", {"a": [(0.49, 0.40)]})
    (_, _), (x1, _), (x2, _) = [tuple(map(float, p)) for p in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', close)]
    assert x2 - x1 > 100  # the axes close in on what is there
    assert ">0.2<" in close  # a line of equal products


def test_every_line_has_its_name_in_a_legend_that_lies_above_the_chart() -> None:
    names = [f"a reward of a long name {i}" for i in range(5)]
    for drawn in (names[:2], names):
        svg = line_chart("t", {name: [(0, i), (1, i + 1)] for i, name in enumerate(drawn)})
        top, height = re.findall(r'viewBox="0 (-?\d+) \d+ (\d+)"', svg)[0]
        texts = re.findall(r'<text x="([\d.]+)" y="([-\d.]+)"[^>]*>([^<]+)<', svg)
        at = {text: (float(x), float(y)) for x, y, text in texts}
        assert at.keys() >= {*drawn}
        places = [at[name] for name in drawn]
        assert len(set(places)) == len(drawn)
        assert all(float(top) < at["t"][1] < y < TOP and x + 5 * len(names[0]) < WIDTH for x, y in places)
        assert int(height) + int(top) == HEIGHT


def test_names_of_points_never_lie_on_each_other() -> None:
    frame = Box(0, 0, 400, 200)
    free = place_labels([(50, 50), (52, 70), (390, 100)], ["first name", "second name", "at the edge"], 9, frame)
    assert free.covered == 0.0
    assert free.places[2][0] + 11 * 9 * 0.5 < 390  # to the left of its point, since the right is outside
    assert place_labels([(50, 50)] * 12, ["the same place"] * 12, 9, frame).covered > 0.0
    crowd = {f"a long name, number {i}": (0.50 + 0.01 * (i % 5), 0.80 + 0.02 * (i // 5)) for i in range(15)}
    svg = scatter_chart("cp pf", crowd, "PF", "CP")
    shown = re.findall(r">([^<>]+)</text>", svg)
    assert [text for text in shown if text.isdigit()] == [str(i + 1) for i in range(15)]
    assert [f"{i + 1}  {name}" for i, name in enumerate(crowd)] == [text for text in shown if "name" in text]


def test_heat_is_by_column_and_by_sign() -> None:
    values = {("a", "x"): 0.2, ("b", "x"): -0.1, ("a", "y"): 4.0, ("b", "y"): float("nan")}
    texts = {key: f"{value}" for key, value in values.items()}

    def strengths(coloured: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        svg = heat_map("t", ["a", "b"], ["x", "y"], values, texts, coloured)
        return re.findall(r'fill="var\(--(\w+), #\w+\)" fill-opacity="([\d.]+)"', svg)

    assert strengths(values) == [("up", "0.55"), ("up", "0.55"), ("down", "0.28")]
    assert strengths([("b", "x")]) == [("up", "0.00"), ("up", "0.00"), ("down", "0.28")]
    assert heat_map("t", ["a"], ["x"], {}, {}, []) == ""
