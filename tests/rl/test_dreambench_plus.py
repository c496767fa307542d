"""DreamBench++: layout of the data, the arithmetic by hand, and a scripted judge with every failure."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mentor_rewards.contract import RewardError
from mentor_rewards.judge_request import Answer, Picture
from mentor_rewards.judge_scores import InvalidAnswer
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.cli import main
from mentor_rl.evaluate.benchmark import Item, Scored
from mentor_rl.evaluate.dreambench_plus import DreamBenchPlus, balance, summary
from mentor_rl.evaluate.dreambench_plus_data import REFERENCES, items_of, read_references
from mentor_rl.evaluate.judge_panel import Case, JudgePanel
from mentor_rl.evaluate.picture_run import run_benchmark
from mentor_rl.evaluate.recipes import DreamBenchPlusRecipe, Judge
from mentor_rl.evaluate.result import Result
from mentor_rl.evaluate.rubrics import CONCEPT, FOLLOWING, STYLE
from mentor_rl.pictures import open_picture

sys.path.append(str(Path(__file__).parents[1] / "rewards"))
from judge_server_stub import JudgeStub, Reply, fails, in_turn, says, texts

PROMPTS = [
    "on a beach",
    "in snow",
    "at night",
    "in a box",
    "as an oil painting",
    "in pixels",
    "in ink",
    "flying",
    "huge",
]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole layout with pictures of four pixels."""
    folder = tmp_path_factory.mktemp("dreambench_plus")
    for category, count in REFERENCES.items():
        place = Path("live_subject") / category if category in ("animal", "human") else Path(category)
        (folder / "images" / place).mkdir(parents=True)
        (folder / "captions" / place).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 4), (number, 90, 0)).save(folder / "images" / place / f"{number:02d}.jpg")
            lines = [f"Red {category}", *(f"a red {category} {prompt}" for prompt in PROMPTS)]
            (folder / "captions" / place / f"{number:02d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_items_have_the_published_ids_kinds_and_categories(data: Path) -> None:
    items = list(items_of(read_references(data), "<image> {prompt}"))
    assert len(items) == 1350
    assert items[0].id == "live_subject_animal_00_red_animal_p0"
    assert items[-1].id == "style_19_red_style_p8"
    assert items[4].text == "<image> a red animal as an oil painting"
    assert [item.facts["kind"] for item in items[:9]].count("style") == 3
    assert sum(item.facts["category"] == "human" for item in items) == 180
    assert items[0].prompt().images[0].size == (4, 4)


def test_references_stand_upright(data: Path, tmp_path: Path) -> None:
    """Orientation 6: a viewer turns the picture by a quarter."""
    picture = Image.new("RGB", (8, 4))
    tags = picture.getexif()
    tags[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=tags)
    assert open_picture(tmp_path / "a.jpg", upright=True).size == (4, 8)
    assert open_picture(tmp_path / "a.jpg").size == (8, 4)


def test_a_missing_data_set_is_one_line_with_the_layout(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"expected images/live_subject/animal/00\.jpg.*yuangpeng/dreambench_plus"
    ) as caught:
        read_references(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "images" / "object").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "object" / "00.jpg")
    with pytest.raises(UserError, match="expected its subject and prompts in"):
        read_references(tmp_path)
    (tmp_path / "captions" / "object").mkdir(parents=True)
    (tmp_path / "captions" / "object" / "00.txt").write_text("cup\na cup\n", encoding="utf-8")
    with pytest.raises(UserError, match="a subject and 9 prompts, found 2 lines"):
        read_references(tmp_path)
    (tmp_path / "captions" / "object" / "00.txt").write_text("cup\n" + "a cup\n" * 9, encoding="utf-8")
    with pytest.raises(UserError, match="expected animal 45, human 20, object 65, style 20 pictures, found object 1"):
        read_references(tmp_path)


def test_three_passes_by_hand() -> None:
    """CP of the passes: 3/4, 2/4, 1/4 -> .5 ± .25. PF: 1 in all. The mean over pictures comes first."""
    cp_PI = np.array([[4, 2], [3, 1], [2, 0]]) / 4
    found = summary(cp_PI, np.ones((3, 2)))
    assert found["CP"] == pytest.approx(0.5)
    assert found["CP ±"] == pytest.approx(0.25)
    assert found["PF ±"] == 0.0
    assert found["CP·PF"] == pytest.approx(0.5)
    assert found["CP/PF"] == pytest.approx(0.5)
    assert summary(cp_PI[:1], np.zeros((1, 2)))["CP/PF"] is None
    assert summary(cp_PI[:1], np.zeros((1, 2)))["CP ±"] is None


def benchmark(data: Path, **judge: Any) -> DreamBenchPlus:
    settings = {"url": "http://127.0.0.1:1/v1", "model": "judge", "passes": 1, "retries": 0, "timeout": 5.0, **judge}
    recipe = DreamBenchPlusRecipe.model_validate(
        {
            "kind": "evaluate",
            "benchmark": "dreambench_plus",
            "run": "unused",
            "images": {"x": str(data)},
            "data": str(data),
            "judge": settings,
        }
    )
    return DreamBenchPlus(recipe)


def test_overall_is_a_mean_of_pictures_not_of_categories(data: Path) -> None:
    """MENTOR's row: .65 / .36 / .57 / .47 by category is .55 overall with 45/20/65/20 references, and CP·PF .47."""
    bench = benchmark(data)
    published = {"animal": 0.65, "human": 0.36, "object": 0.57, "style": 0.47}
    items = [Item(f"i{n}", "x", facts={**item.facts}) for n, item in enumerate(bench.items())]
    facts = {(item.id, 0): {"cp": [4 * published[item.facts["category"]]], "pf": [4 * 0.84]} for item in items}
    table = bench.tabulate(Scored("r", tuple(items), (0,), facts, lambda item, seed: Path())).metrics
    assert table["animal"]["CP"] == pytest.approx(0.65)
    assert table[""]["CP"] == pytest.approx(0.55, abs=0.005)
    assert table[""]["CP·PF"] == pytest.approx(0.47, abs=0.01)
    assert table["style prompts"]["PF"] == pytest.approx(0.84)
    assert balance(0.555, 0.839)["CP·PF"] == pytest.approx(0.466, abs=0.001)


@pytest.mark.parametrize(
    "text",
    [
        '{"score": 5}',
        '{"score": 10}',
        '{"score": -1}',
        '{"score": 3.5}',
        '{"score": true}',
        '{"score": "3"}',
        '{"score": 3, "score": 4}',
        '{"score": 3, "reason": "x"}',
        "Score: 3",
        '```json\n{"score": 3}\n```',
        '{"score": 3} {"score": 3}',
        "",
    ],
)
def test_malformed_doubled_and_out_of_range_answers_are_rejected(text: str) -> None:
    assert CONCEPT.parse(Answer('{"score": 3}', "stop")) == 3
    with pytest.raises(InvalidAnswer):
        CONCEPT.parse(Answer(text, "stop"))
    with pytest.raises(InvalidAnswer, match="cut off"):
        CONCEPT.parse(Answer('{"score": 3}', "length"))


def reply(body: dict[str, Any], count: int) -> Reply:
    """4 for a concept, 2 for following; the first answer of all is out of range."""
    following = "analysis" in body["response_format"]["json_schema"]["schema"]["properties"]
    if count == 0:
        return says('{"score": 10}')
    return says(json.dumps({"analysis": "fine", "score": 2} if following else {"score": 4}))


def test_each_question_shows_what_it_may(data: Path) -> None:
    """CP: two pictures and no text; PF: the text and one picture. Each pass has its own seed."""
    picture = Picture(Image.new("RGB", (8, 8)))
    with JudgeStub(reply) as stub:
        panel = JudgePanel(Judge(url=stub.url, model="judge", passes=2, retries=0))
        panel.load("cpu")
        (judged,) = panel.judge([Case((STYLE, FOLLOWING), 'a "red" <cat>', picture, (picture,))])
        panel.unload()
    assert judged.scores == {"style_preservation": [4, 4], "prompt_following": [2, 2]}
    assert len(stub.bodies) == 5  # one was asked again
    concepts = [body for body in stub.bodies if len(texts(body)) == 2 and texts(body)[0].startswith("Reference")]
    followings = [body for body in stub.bodies if texts(body)[0].startswith("Requested text")]
    assert len(concepts) + len(followings) == 5
    assert all("cat" not in json.dumps(body) for body in concepts)
    assert "\\u003ccat\\u003e" in texts(followings[0])[0]
    assert len({body["seed"] for body in followings}) >= 2


def test_a_judge_that_never_answers_well_gives_a_reason(data: Path) -> None:
    picture = Picture(Image.new("RGB", (8, 8)))
    with JudgeStub(in_turn(says("Score: 3"))) as stub:
        panel = JudgePanel(Judge(url=stub.url, model="judge", passes=1, retries=0))
        panel.load("cpu")
        (judged,) = panel.judge([Case((CONCEPT,), "x", picture, (picture,))])
        panel.unload()
    assert judged.scores == {}
    assert "3 answers rejected" in str(judged.reason)
    with JudgeStub(in_turn(fails(404, "no such model"))) as stub:
        panel = JudgePanel(Judge(url=stub.url, model="judge", passes=1, retries=0))
        panel.load("cpu")
        with pytest.raises(RewardError, match="refuses the request as configured: 404"):
            panel.judge([Case((CONCEPT,), "x", picture, (picture,))])
        panel.unload()


def test_a_dead_judge_is_noticed_before_there_is_a_run_folder(
    data: Path, random_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "bench.yaml"
    recipe.write_text(
        f"{{kind: evaluate, benchmark: dreambench_plus, run: {tmp_path}/run, policies: {{fox: {random_policy}}}, "
        f"data: {data}, judge: {{url: 'http://127.0.0.1:1/v1', model: judge}}}}"
    )
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(recipe)])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1
    assert line.startswith("the judge at http://127.0.0.1:1/v1: expected a server that offers the model 'judge', found")
    assert "`mentor judge serve --model judge` starts one" in line
    assert not (tmp_path / "run").exists()


def test_a_local_judge_without_its_package_is_noticed_before_any_work(
    data: Path, random_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = benchmark(data, backend="local", url=None, model=str(random_policy))
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(RewardError, match=r"needs the extra 'judge-local': pip install 'mentor-rl\[judge-local\]'"):
        bench.check()


def test_a_whole_run_with_a_gap_reports_coverage_and_lower_bound(
    data: Path, random_policy: Path, tmp_path: Path
) -> None:
    """Eight pictures, one never judged: refused; with incomplete: score the table has CP 1 and a lower bound of 7/8."""
    torch.set_num_threads(1)

    def script(body: dict[str, Any], count: int) -> Reply:
        if any("in snow" in text for text in texts(body)):
            return says("I would rather not.")
        return reply(body, count + 1)

    with JudgeStub(script) as stub:
        values: dict[str, Any] = {
            "kind": "evaluate",
            "benchmark": "dreambench_plus",
            "run": str(tmp_path / "run"),
            "policies": {"fox": str(random_policy)},
            "data": str(data),
            "judge": {"url": stub.url, "model": "judge", "passes": 2, "retries": 0, "cache": str(tmp_path / "answers")},
            "limit": 8,
            "device": "cpu",
        }
        folder = RunFolder.open(values["run"], values)

        def run(**changes: Any) -> Result:
            recipe = DreamBenchPlusRecipe.model_validate({**values, **changes})
            result = run_benchmark(recipe, DreamBenchPlus(recipe), folder)
            assert result is not None
            return result

        with pytest.raises(
            UserError, match="1 of 8 pictures have no score: live_subject_animal_00_red_animal_p1_0: prompt_f"
        ):
            run()
        asked = len(stub.bodies)
        result = run(incomplete="score")
        assert len(stub.bodies) == asked + 2 * 3  # the two passes of one question, each asked three times again
    assert result.coverage == {"items": 8, "scored": 7}
    assert result.metrics["fox"]["CP"] == 1.0
    assert result.metrics["fox"]["CP·PF"] == 0.5
    bound = result.metrics["fox · missing counted as 0"]
    assert bound["CP"] == pytest.approx(7 / 8)
    assert bound["CP·PF"] == pytest.approx(7 / 8 * 7 / 16)
    assert result.stand_in
    assert "concept_preservation 1" in result.judge
    assert any("first 8 of 1350 items" in note for note in result.notes)
