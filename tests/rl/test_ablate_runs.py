"""Ablations at work: jobs that go on after a kill, folders that fit, the time left, scripts for other machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ablation_toys import mentor, planner

from mentor_base.errors import UserError
from mentor_rl.ablation import runner as runner_module
from mentor_rl.ablation.jobs import Plan
from mentor_rl.ablation.launch_files import write_launch_files
from mentor_rl.ablation.runner import Times, write_job_files
from mentor_rl.commands.train import recipe_text

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    return planner(tmp_path, monkeypatch)


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


def test_a_judge_may_have_moved_when_an_ablation_goes_on(plan: Any) -> None:
    """What `mentor evaluate` lets pass between two calls, since no result depends on it, holds up no ablation."""
    arms = {"free": {"grpo.algorithm.beta": 0.0}}
    job = plan(arms=arms).jobs["free/seed0/benchmark"]
    job.folder.mkdir(parents=True)
    (job.folder / "recipe.yaml").write_text(recipe_text(job.recipe))
    (job.folder / "results").mkdir()  # it has begun
    write_job_files(plan(arms=arms, benchmark={"recipe": "bench.yaml", "overrides": {"device": "cpu"}}))
    assert "device: cpu" in job.file.read_text()


def test_a_job_that_does_not_stop_is_killed_and_told(
    plan: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = plan(arms={"free": {"grpo.algorithm.beta": 0.0}})
    job = made.jobs["full/seed0/grpo"]
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    job.folder.parent.mkdir(parents=True)
    with job.log.open("ab") as log, job.log.open("rb") as lock:
        process = subprocess.Popen([sys.executable, "-c", deaf], stdout=log)
        wait_for(lambda: job.log.stat().st_size > 0)
        monkeypatch.setattr(runner_module, "STOP_SECONDS", 0.2)
        stopped = runner_module.Runner(made)
        stopped.running = [runner_module._Running(job, process, 0, lock, log, True)]
        stopped._stop()
        assert process.wait(10) == -signal.SIGKILL
    assert "full/seed0/grpo: killed, since it had not stopped within 0 s" in capsys.readouterr().out


def test_a_lane_gets_as_many_gpus_as_its_launch_file_has_processes(plan: Any) -> None:
    made = plan(arms={"free": {"grpo.algorithm.beta": 0.0}})
    write_job_files(made)
    Path("two.yaml").write_text("num_processes: 2\n")
    write_launch_files(made, Path("jobs"), Path("two.yaml"))
    for name in ("mentor", "accelerate"):
        Path("bin").mkdir(exist_ok=True)
        (Path("bin") / name).write_text('#!/usr/bin/env bash\necho "$CUDA_VISIBLE_DEVICES" >>calls.txt\n')
        (Path("bin") / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{Path('bin').resolve()}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "jobs/local.sh", "5"], env=environment, capture_output=True, check=True)
    assert set(calls()) == {"0,1", "2,3"}
    few = subprocess.run(["bash", "jobs/local.sh", "1"], env=environment, capture_output=True, text=True, check=False)
    assert (few.returncode, few.stderr) == (2, "expected 2 or more GPUs, found 1\n")
    assert "#SBATCH --gres=gpu:2\n" in (Path("jobs") / "wave_0.sbatch").read_text()
    Path("two.yaml").write_text("distributed_type: MULTI_GPU\n")
    with pytest.raises(UserError, match=r"--launch two\.yaml: num_processes: expected a whole number above 0"):
        write_launch_files(made, Path("jobs"), Path("two.yaml"))


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
    with Times(made).file.open("a") as file:
        file.write('{"job": "full/seed0/benc')  # a kill cut it short
    assert Times(made).left(1) == 4 * 15 + 4 * 30
    mentor("ablate", "ablation.yaml", "--dry-run")
    out = capsys.readouterr().out
    assert "full: nothing is changed (the reference)\nfree: grpo.algorithm.beta=0.0\n" in out
    assert "grpo: 4 runs, 0 finished; 15 s each, measured" in out
