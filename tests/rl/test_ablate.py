"""Ablations: arms from axes, jobs that are shared, runs that go on after a kill, tables with known answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpo_toys
import pytest
import yaml

from mentor_base.errors import UserError
from mentor_rl.ablation.jobs import Plan, plan_jobs
from mentor_rl.ablation.launch_files import lanes_of, write_launch_files
from mentor_rl.ablation.outcome import BENCHMARK, REWARDS, Outcome
from mentor_rl.ablation.recipe import AblateRecipe
from mentor_rl.ablation.runner import Times, write_job_files
from mentor_rl.cli import main
from mentor_rl.commands.train import recipe_text
from mentor_rl.evaluate.paired import over_training_seeds, student, verdict
from mentor_rl.evaluate.result import Result
from mentor_rl.recipe_files import load_recipe

ROOT = Path(__file__).resolve().parents[2]
SFT = """\
kind: sft
run: runs/{name}
init: {init}
stage:
  name: {name}
  mixture: {{weights: {{t2i: 0.5, segmentation: 0.3, recovery: 0.2}}}}
  train: {{}}
optimisation: {{lr: 1e-3, steps: 2, batch: 2}}
validation: {{every: 2}}
checkpoints: {{every: 1}}
"""
GRPO = """\
kind: grpo
run: runs/grpo
policy: policy
prompts: {}
algorithm: {group_size: 2, prompts_per_step: 1}
optimisation: {lr: 1e-3, steps: 2}
rewards:
  aesthetic_colours: {use: colour_match, weight: 1.0}
  sharpness: {use: colour_match, weight: 2.0}
  contrast: {use: colour_match}
  watched: {use: colour_match, role: monitor}
checkpoints: {every: 1}
"""
BENCH = """\
kind: evaluate
run: runs/bench
benchmark: emojibench
policies: {stage2: policy}
evaluator: policy
items: 4
seeds: [0]
baselines: false
"""
CHAIN = {
    "stages": {name: {"recipe": f"{name}.yaml"} for name in ("alignment", "instruction", "grpo")},
    "benchmark": {"recipe": "bench.yaml"},
    "seeds": [0, 1],
}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the plan of an ablation of these sections, in a folder with the recipes of a whole chain."""
    monkeypatch.chdir(tmp_path)
    Path("policy").mkdir()
    Path("alignment.yaml").write_text(SFT.format(name="alignment", init="policy"))
    Path("instruction.yaml").write_text(SFT.format(name="instruction", init="runs/alignment"))
    Path("grpo.yaml").write_text(GRPO)
    Path("bench.yaml").write_text(BENCH)

    def make(**sections: Any) -> Plan:
        file = Path("ablation.yaml")
        file.write_text(yaml.safe_dump({"kind": "ablate", "run": "runs/abl", **CHAIN, **sections}, sort_keys=False))
        recipe = load_recipe(file)
        assert isinstance(recipe, AblateRecipe)
        return plan_jobs(file, recipe, need_inputs=True)

    return make


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
    ],
)
def test_what_does_not_add_up_is_one_line(plan: Any, sections: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(**sections)
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


WORKER = """\
import json, pathlib, signal, sys, time, yaml

signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
command, file = sys.argv[1], pathlib.Path(sys.argv[2])
recipe = yaml.safe_load(file.read_text())
folder = pathlib.Path(recipe["run"])
folder.mkdir(exist_ok=True)
(folder / "recipe.yaml").write_text(file.read_text())
with open("calls.txt", "a") as calls:
    calls.write(f"{file}\\n")
while pathlib.Path("hold").exists():
    time.sleep(0.01)
if pathlib.Path("broken").exists() and pathlib.Path("broken").read_text() in str(folder):
    sys.exit("the reward is broken")
made = folder / ("final" if command == "train" else "results")
made.mkdir()
(made / ("config.json" if command == "train" else "emojibench.json")).write_text("{}")
"""
RUNNER = """\
import pathlib, sys
from mentor_rl.ablation import runner
from mentor_rl.ablation.jobs import plan_jobs
from mentor_rl.recipe_files import load_recipe

runner.PROGRAM = (sys.executable, "worker.py")
path = pathlib.Path("ablation.yaml")
print(runner.Runner(plan_jobs(path, load_recipe(path), need_inputs=True), parallel=2).run())
"""


def calls() -> list[str]:
    return Path("calls.txt").read_text().splitlines() if Path("calls.txt").exists() else []


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def runner(plan: Any) -> Callable[[], subprocess.Popen[str]]:
    """Starts a runner of two arms with one seed, two jobs at a time, whose jobs are those of WORKER."""
    plan(stages={"grpo": {"recipe": "grpo.yaml"}}, arms={"free": {"grpo.algorithm.beta": 0.0}}, seeds=[0])
    Path("worker.py").write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'rewards'}"}

    def start() -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, "-c", RUNNER], env=environment, **pipes)  # type: ignore[call-overload]

    return start


def test_jobs_survive_a_killed_runner_and_none_runs_twice(runner: Callable[[], subprocess.Popen[str]]) -> None:
    Path("hold").touch()
    killed = runner()
    wait_for(lambda: len(calls()) == 2)
    killed.kill()
    killed.wait()
    second = runner()
    time.sleep(1.0)
    assert len(calls()) == 2  # the jobs of the killed runner are at work still
    Path("hold").unlink()
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0, out
    assert len(calls()) == len(set(calls())) == 4
    out, _ = runner().communicate(timeout=60)
    assert out == "{}\n"
    assert len(calls()) == 4


def test_a_stopped_runner_stops_its_jobs_and_a_failed_job_holds_up_only_its_own(
    runner: Callable[[], subprocess.Popen[str]],
) -> None:
    Path("hold").touch()
    stopped = runner()
    wait_for(lambda: len(calls()) == 2)
    stopped.terminate()
    out, _ = stopped.communicate(timeout=60)
    assert "Interrupted: runs/abl: stopped; the same command goes on" in out
    Path("hold").unlink()
    Path("broken").write_text("free/seed0/grpo")
    out, _ = runner().communicate(timeout=60)
    assert "'free/seed0/grpo': 'exit code 1: the reward is broken (log: " in out
    assert "'free/seed0/benchmark': 'not run: free/seed0/grpo failed'" in out
    assert Path("runs/abl/arms/full/seed0/benchmark/results/emojibench.json").exists()


def test_another_run_in_a_job_s_folder_is_refused(plan: Any) -> None:
    arms = {"free": {"grpo.algorithm.beta": 0.0}}
    job = plan(arms=arms).jobs["free/seed0/grpo"]
    job.folder.mkdir(parents=True)
    (job.folder / "recipe.yaml").write_text(recipe_text(job.recipe).replace("steps: 2", "steps: 9"))
    (job.folder / "metrics.jsonl").touch()  # it has begun
    with pytest.raises(UserError, match=r"holds another run \(differs in optimisation.steps: 9 there, 2 now\)"):
        write_job_files(plan(arms=arms))


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


def mentor(*arguments: str) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code in (0, None)


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


def test_launch_files_run_every_job_once_and_in_order(plan: Any) -> None:
    made = plan(arms={"free": {"grpo.algorithm.beta": 0.0}, "guided": {"benchmark.guidance": [2.0]}})
    write_job_files(made)
    write_launch_files(made, Path("jobs"), None)
    for name in ("mentor", "accelerate"):
        tool = Path("bin") / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text('#!/usr/bin/env bash\necho "$CUDA_VISIBLE_DEVICES ${0##*/} ${@: -1}" >>calls.txt\n')
        tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{Path('bin').resolve()}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "jobs/local.sh", "2"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in calls()]
    assert {gpu for gpu, _, _ in rows} == {"0", "1"}
    files = [file for _, _, file in rows]
    assert sorted(files) == sorted(str(job.file) for job in made.jobs.values())
    for job in made.jobs.values():
        for name in job.after:
            assert files.index(str(made.jobs[name].file)) < files.index(str(job.file))
    assert {tool for _, tool, file in rows if "benchmark" in file} == {"mentor"}
    arrays = [Path("jobs") / f"wave_{wave}.sbatch" for wave in range(4)]
    assert all("#SBATCH --array=0-" in file.read_text() for file in arrays if file.exists())
    first = (Path("jobs") / "wave_0.sbatch").read_text()
    listed = (Path("jobs") / "wave_0.txt").read_text().splitlines()
    assert f"--array=0-{len(listed) - 1}\n" in first
    script = subprocess.run(
        ["bash", "jobs/wave_0.sbatch"],
        env={**environment, "SLURM_ARRAY_TASK_ID": "1"},
        capture_output=True,
        check=False,
    )
    assert script.returncode == 0
    assert calls()[-1].split()[-1] in Path(listed[1]).read_text()


def test_intervals_over_seeds_and_verdicts_by_hand() -> None:
    assert [student(freedom) for freedom in (1, 2, 10)] == pytest.approx([12.706, 4.303, 2.228], abs=2e-3)
    assert over_training_seeds([0.4, 0.5, 0.6]) == pytest.approx([0.5, 0.5 - 0.2484, 0.5 + 0.2484], abs=1e-3)
    assert over_training_seeds([0.4]) is None
    assert verdict([0.1, 0.05, 0.15]) == "up"
    assert verdict([-0.1, -0.15, -0.05], [-0.1, -0.2, -0.01]) == "down"
    assert verdict([0.1, 0.05, 0.15], [0.1, -0.1, 0.3]) == "up, seeds differ"
    assert verdict([0.1, -0.01, 0.2], [0.1, 0.05, 0.15]) == "within noise"


def test_the_time_comes_from_runs_that_are_done(plan: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(
        stages={"grpo": {"recipe": "grpo.yaml", "seconds": 60}},
        benchmark={"recipe": "bench.yaml", "seconds": 30},
        arms={"free": {"grpo.algorithm.beta": 0.0}},
    )
    assert Times(made).left(2) == (4 * 60 + 4 * 30) / 2
    made.folder.mkdir(parents=True)
    Times(made).add(made.jobs["full/seed0/grpo"], 10.0)
    Times(made).add(made.jobs["full/seed1/grpo"], 20.0)
    assert Times(made).left(1) == 4 * 15 + 4 * 30
    mentor("ablate", "ablation.yaml", "--dry-run")
    out = capsys.readouterr().out
    assert "full: nothing is changed (the reference)\nfree: grpo.algorithm.beta=0.0\n" in out
    assert "grpo: 4 runs, 0 finished; 15 s each, measured" in out


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "ablations").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_ablations_plan(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(file, need_inputs=False)
    assert isinstance(recipe, AblateRecipe)
    made = plan_jobs(file, recipe, need_inputs=False)
    assert len(made.arms) > 2
    assert Times(made).left(1) is not None or not file.stem.startswith("emoji")
