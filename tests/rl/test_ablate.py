"""Ablations: arms from axes, jobs that are shared, tables with known answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpo_toys
import pytest
import yaml
from ablation_toys import BENCH, CHAIN, mentor, planner
from PIL import Image

from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl import gallery
from mentor_rl.ablation.jobs import Job, Plan, plan_jobs
from mentor_rl.ablation.launch_files import lanes_of
from mentor_rl.ablation.measure import outcome_of
from mentor_rl.ablation.outcome import BENCHMARK, REWARDS, Outcome
from mentor_rl.ablation.recipe import AblateRecipe
from mentor_rl.ablation.runner import Times
from mentor_rl.commands.train import recipe_text
from mentor_rl.evaluate.paired import over_training_seeds, student, verdict
from mentor_rl.evaluate.result import Result
from mentor_rl.recipe_files import load_recipe

ROOT = Path(__file__).resolve().parents[2]
ALONE = {f"rewards.{name}.role": "monitor" for name in ("aesthetic_colours", "sharpness")}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    return planner(tmp_path, monkeypatch)


def test_axes_make_arms_and_left_out_rewards_are_watched(plan: Any) -> None:
    made = plan(
        axes=[
            {"leave_out": "grpo.rewards"},
            {"only_one": "grpo.rewards", "names": ["sharpness"]},
            {"leave_out": "instruction.stage.mixture.weights", "names": ["recovery"]},
            {"grid": {"grpo.rewards.sharpness.weight": [4, 8.5], "grpo.algorithm.beta": [0.0]}},
            {"grid": {"benchmark.guidance": [[2.0], [1.5, 3.0]]}},
        ]
    )
    changes = {arm.name: dict(arm.changes) for arm in made.arms}
    assert list(changes) == [
        *("full", "without_aesthetic_colours", "without_sharpness", "without_contrast", "only_sharpness"),
        "without_recovery",
        *(
            "sharpness.weight=4_algorithm.beta=0",
            "sharpness.weight=8.5_algorithm.beta=0",
            "guidance=2",
            "guidance=1.5,3",
        ),
    ]
    others = ("aesthetic_colours", "contrast")
    assert changes["only_sharpness"] == {f"grpo.rewards.{name}.role": "monitor" for name in others}
    assert changes["without_recovery"] == {"instruction.stage.mixture.weights": {"t2i": 0.5, "segmentation": 0.3}}
    recipe = made.jobs["without_sharpness/seed1/grpo"].recipe
    assert recipe.rewards["sharpness"].role == "monitor"
    assert recipe.rewards["sharpness"].weight == 2.0
    assert recipe.seed == 1


def test_stages_are_chained_and_shared(plan: Any) -> None:
    made = plan(
        arms={
            "text_heavy": {"instruction.stage.mixture.weights": {"t2i": 0.8, "recovery": 0.2}},
            "no_alignment": {"alignment": None, "instruction.init": "policy"},
            "guided": {"benchmark.guidance": [2.0]},
        }
    )
    assert made.members["text_heavy", 1] == {
        "alignment": "full/seed1/alignment",
        "instruction": "text_heavy/seed1/instruction",
        "grpo": "text_heavy/seed1/grpo",
        "benchmark": "text_heavy/seed1/benchmark",
    }
    assert made.members["guided", 0]["grpo"] == "full/seed0/grpo"
    assert made.jobs["text_heavy/seed1/instruction"].after == ("full/seed1/alignment",)
    assert made.jobs["text_heavy/seed1/instruction"].recipe.init == "runs/abl/arms/full/seed1/alignment"
    assert made.jobs["no_alignment/seed0/instruction"].recipe.init == "policy"
    assert len(made.jobs) == 2 * (4 + 3 + 3 + 1)
    lanes = lanes_of(made)
    assert [lane.wave for lane in lanes] == sorted(lane.wave for lane in lanes)
    placed = {job.name: lane for lane in lanes for job in lane.jobs}
    assert set(placed) == set(made.jobs)
    for job in made.jobs.values():
        for name in job.after:
            assert placed[name] is placed[job.name] or placed[name].wave < placed[job.name].wave


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"axes": [{"leave_out": "grpo.rewards", "names": ["sharpnes"]}]},
            "axes.0.names: unknown entry 'sharpnes' of grpo.rewards; did you mean 'sharpness'?",
        ),
        ({"axes": [{"leave_out": "grpo.reward"}]}, "unknown key 'reward' in grpo.reward; did you mean 'rewards'?"),
        ({"axes": [{"leave_out": "rl.rewards"}]}, "axes.0.leave_out: unknown step 'rl'; known: alignment, benchmark"),
        ({"axes": [{"leave_out": "grpo.algorithm.beta"}]}, "expected a mapping such as rewards or mixture weights"),
        ({"axes": [{"grid": {"grpo.seed": []}}]}, "axes.0.grid.grpo.seed"),
        (
            {"stages": {"grpo": {"recipe": "grpo.yaml", "overrides": ALONE}}, "axes": [{"leave_out": "grpo.rewards"}]},
            "axes.0.leave_out: expected two or more trained entries in grpo.rewards, found contrast",
        ),
        ({"axes": [{"leave_out": "grpo.rewards", "only_one": "grpo.rewards"}]}, "give one of leave_out, only_one"),
        ({"axes": [{"leave_out": "grpo.rewards"}], "arms": {"without_sharpness": {"grpo.seed": 1}}}, "given twice"),
        ({"arms": {"a/b": {"grpo.algorithm.beta": 0}}}, "arm 'a/b': expected a name of letters"),
        (
            {"arms": {"a": {"grpo.algorithm.betta": 0}}},
            "arm 'a', grpo: algorithm.betta: unknown key; did you mean 'beta'",
        ),
        ({"arms": {"a": {"gpro.algorithm.beta": 0}}}, "unknown step 'gpro'; did you mean 'grpo'?"),
        ({"arms": {"a": {"grpo.algorithm.beta": 0.02}}}, "arms 'full' and 'a' are the same runs; leave one out"),
        ({"arms": {"a": {"grpo.algorithm.beta": 0}}, "reference": "b"}, "reference: unknown arm 'b'; known: a"),
        ({}, "give axes or arms: there is nothing to compare"),
        ({"arms": {"a": {"alignment.init": "nowhere"}}}, "init: expected an existing path, found none at nowhere"),
        ({"arms": {"a": {"grpo.policy": "policy"}}}, "policy: this stage starts from instruction; `instruction: null`"),
        ({"arms": {"a": {"grpo.rewards.x.weight": 1}}}, "rewards.x"),
        ({"arms": {"a": {"grpo.algorithm.beta": 0}}, "seeds": [1, 1]}, "seeds: expected different ones"),
        ({"arms": {"a": {"grpo.algorithm.beta": 0}}, "published": "geneval"}, "published: unknown table 'geneval'"),
    ],
)
def test_what_does_not_add_up_is_one_line(plan: Any, sections: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(**sections)
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def toy(random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Two arms and two seeds around the random policy: four GRPO runs of two steps, five benchmarks, all done."""
    import torch

    from mentor_base.data.atlas import Atlas
    from mentor_base.data.shapes import COLOURS
    from mentor_rl.evaluate.evaluator import Evaluator, EvaluatorNet

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    styles, size = Atlas.load().styles, {"width": 8, "depth": (1, 1), "embedding": 16}
    net = EvaluatorNet(styles=len(styles), colours=len(COLOURS), **size)
    Evaluator(net, styles, tuple(COLOURS), size=size).save(Path("judge"), torch.float32)
    toys = Path(grpo_toys.__file__)
    rewards = {"brightness": {"use": f"{toys}:Brightness"}, "redness": {"use": f"{toys}:Redness"}}
    grpo = grpo_toys.toy_recipe(random_policy, Path("runs/toy"), 2, rewards=rewards)
    Path("grpo.yaml").write_text(yaml.safe_dump(grpo))
    bench = {**yaml.safe_load(BENCH), "policies": {"x": str(random_policy)}, "evaluator": "judge", "items": 2}
    Path("bench.yaml").write_text(yaml.safe_dump({**bench, "splits": ["unseen_subjects"]}))
    ablation = {
        "kind": "ablate",
        "run": "runs/abl",
        "seeds": [0, 1],
        "untuned": True,
        "stages": {"grpo": {"recipe": "grpo.yaml"}},
        "benchmark": {"recipe": "bench.yaml"},
        "axes": [{"leave_out": "grpo.rewards", "names": ["redness"]}],
    }
    Path("ablation.yaml").write_text(yaml.safe_dump(ablation))
    recipe = load_recipe("ablation.yaml")
    assert isinstance(recipe, AblateRecipe)
    plan = plan_jobs(Path("ablation.yaml"), recipe, need_inputs=True)
    mentor("ablate", "ablation.yaml", "--write-jobs", "jobs")
    for job in plan.jobs.values():
        mentor(job.command, str(job.file))
    return plan


def test_finished_runs_become_tables(toy: Plan) -> None:
    before = {file: file.stat().st_mtime_ns for file in (toy.folder / "arms").rglob("*") if file.is_file()}
    mentor("ablate", "ablation.yaml")
    assert {file: file.stat().st_mtime_ns for file in (toy.folder / "arms").rglob("*") if file.is_file()} == before
    outcome = Outcome.read(toy.folder / "results" / "ablation.json")
    assert outcome.missing == ()
    assert {name: arm.seeds for name, arm in outcome.arms.items()} == {
        "full": (0, 1),
        "untuned": (0,),
        "without_redness": (0, 1),
    }
    assert set(outcome.metrics(REWARDS)) == {"brightness", "redness"}
    assert outcome.arms["without_redness"].trained == ("brightness",)
    result = Result.read(toy.jobs["full/seed1/benchmark"].result)
    cell = outcome.arms["full"].panels[BENCHMARK]["CP"]
    assert cell.per_seed["1"] == pytest.approx(sum(result.per_item["full · unseen subjects"]["CP"]) / 2, abs=1e-4)
    assert cell.value == pytest.approx(sum(cell.per_seed.values()) / 2)
    assert cell.verdict == ""
    left_out = outcome.arms["without_redness"].panels[REWARDS]["redness"]
    reference = outcome.arms["full"].panels[REWARDS]["redness"]
    assert left_out.change is not None
    assert left_out.change[0] == pytest.approx(left_out.value - reference.value)
    text = (toy.folder / "results" / "ablation.md").read_text(encoding="utf-8")
    assert "| without_redness | 2 | **" in text
    assert "| arm | CP | PF | CP·PF | CP/PF |" in text
    (toy.jobs["full/seed1/benchmark"].result).unlink()
    mentor("ablate", "ablation.yaml", "--collect")
    outcome = Outcome.read(toy.folder / "results" / "ablation.json")
    assert outcome.missing == ("full/seed1/benchmark",)
    changed = outcome.arms["without_redness"].panels[BENCHMARK]["CP"]
    assert changed.over_seeds is None  # one seed left that both have
    assert changed.change is not None


def finish(plan: Plan, concept: Callable[[Job], float], items: int = 1) -> None:
    """Make every job's folder look done: a gallery of one fixed prompt, or the result of items of one concept."""
    plan.folder.mkdir(parents=True)
    (plan.folder / "recipe.yaml").write_text(recipe_text(plan.recipe))
    for job in plan.jobs.values():
        if job.command == "evaluate":
            arm = job.name.split("/")[0]
            columns = {"item": [f"i{i}" for i in range(items)], "CP": [concept(job)] * items, "PF": [1.0] * items}
            row = {f"{arm} · val": columns}
            facts = {"details": {"policies": [arm]}, "coverage": {"items": 9, "scored": 8}}
            Result("emojibench", {name: {} for name in row}, row, **facts).write(job.result)
            continue
        (job.folder / "final").mkdir(parents=True)
        (job.folder / "final" / "config.json").write_text("{}")
        run = RunFolder(job.folder)
        gallery.save_prompts(run, [Prompt("a fox")])
        for step, score in ((0, 0.25), (2, 0.5)):
            gallery.save_step(run, step, [Image.new("RGB", (4, 4))], [{"style": score}])


def test_what_the_last_stage_starts_from_is_the_untuned_policy_where_it_is_the_first(plan: Any) -> None:
    """And one item has neither interval nor verdict, in files and report."""
    tuned = {"arms": {"free": {"grpo.algorithm.beta": 0.0}}, "untuned": True, "seeds": [0]}
    for name, stages, found in (("chain", CHAIN["stages"], False), ("alone", {"grpo": {"recipe": "grpo.yaml"}}, True)):
        made = plan(run=f"runs/{name}", stages=stages, **tuned)
        finish(made, lambda job: 0.75 if "free" in job.name else 0.5)
        mentor("ablate", "ablation.yaml", "--collect")
        outcome = Outcome.read(made.folder / "results" / "ablation.json")
        assert set(outcome.arms["untuned"].panels[BENCHMARK]) == {"CP", "PF", "CP·PF", "CP/PF"}
        assert ("style" in outcome.arms["untuned"].panels[REWARDS]) is found
        cell = outcome.arms["free"].panels[BENCHMARK]["CP"]
        assert (cell.change, cell.verdict) == ([0.25, None, None], "no interval")
        assert "| free | +0.250 [–, –] no interval |" in (made.folder / "results" / "ablation.md").read_text("utf-8")
        assert "+0.250 no interval" in (made.folder / "report.html").read_text("utf-8")
        assert outcome.facts["pictures without a score"] == 3


def test_the_untuned_policy_is_compared_with_every_seed_of_the_reference(plan: Callable[..., Plan]) -> None:
    """CP .5, .6 and .7 of three seeds against .4: -.2 of every item, and over the seeds -.2 ± 4.303 x .1 / sqrt(3)."""
    stages = {"grpo": {"recipe": "grpo.yaml"}}
    made = plan(stages=stages, arms={"free": {"grpo.algorithm.beta": 0.0}}, untuned=True, seeds=[0, 1, 2])
    finish(made, lambda job: 0.4 if job.name.startswith("untuned") else 0.5 + 0.1 * int(job.name.split("/")[1][4:]), 3)
    cell = outcome_of(made).arms["untuned"].panels[BENCHMARK]["CP"]
    assert cell.change == pytest.approx([-0.2, -0.2, -0.2])
    assert cell.over_seeds == pytest.approx([-0.2, -0.4484, 0.0484], abs=1e-3)
    assert cell.verdict == "down, seeds differ"


def test_intervals_over_seeds_and_verdicts_by_hand() -> None:
    assert [student(freedom) for freedom in (1, 2, 10)] == pytest.approx([12.706, 4.303, 2.228], abs=2e-3)
    assert over_training_seeds([0.4, 0.5, 0.6]) == pytest.approx([0.5, 0.5 - 0.2484, 0.5 + 0.2484], abs=1e-3)
    assert over_training_seeds([0.4]) is None
    assert verdict([0.1, 0.05, 0.15]) == "up"
    assert verdict([-0.1, -0.15, -0.05], [-0.1, -0.2, -0.01]) == "down"
    assert verdict([0.1, 0.05, 0.15], [0.1, -0.1, 0.3]) == "up, seeds differ"
    assert verdict([0.1, -0.01, 0.2], [0.1, 0.05, 0.15]) == "within noise"


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "ablations").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_ablations_plan(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(file, need_inputs=False)
    assert isinstance(recipe, AblateRecipe)
    made = plan_jobs(file, recipe, need_inputs=False)
    assert len(made.arms) > 2
    assert Times(made).left(1) is not None or not file.stem.startswith("emoji")
