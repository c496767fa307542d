"""Runs the jobs of an ablation on this machine: one after the other, or several at a time, each a process of its own.

A job is `mentor train FILE` or `mentor evaluate FILE`, nothing else. Finished ones are not run again, an unfinished one
goes on from its state. A job that fails holds up only the jobs behind it.

However the runner ends, no two processes write one run folder: a job's process inherits a locked file beside the
folder, and the lock goes when that process goes. A runner that finds a job locked waits for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.runlog import MARKER
from mentor_rl.ablation.jobs import Job, Plan
from mentor_rl.commands.evaluate import PASSING
from mentor_rl.commands.train import open_run, recipe_text, say

PROGRAM = (sys.executable, "-m", "mentor_rl")
POLL_SECONDS = 0.1
STOP_SECONDS = 300.0  # for a job to save its state and end


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    lock: IO[bytes]
    log: IO[bytes]
    fresh: bool  # begun by this process, so that its time is the time of the whole job
    started: float = field(default_factory=time.monotonic)


class Runner:
    """Runs what is not finished of a plan.

    Args:
        parallel: how many jobs at a time.
        threads: of each job's torch; default: the cores over ``parallel``. A recipe's own ``threads`` come first.
    """

    def __init__(self, plan: Plan, parallel: int = 1, threads: int | None = None) -> None:
        self.plan, self.parallel = plan, parallel
        self.threads = threads or max(1, cores() // parallel)
        self.times = Times(plan)
        self.running: list[_Running] = []
        self.failed: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Run to the end. Returns job -> why, of those that failed or stand behind a failed one.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, once every job has saved its state.
        """
        write_job_files(self.plan)
        with InterruptGuard() as guard:
            try:
                while self._step():
                    if guard.requested:
                        self._stop()
                        raise Interrupted(f"{self.plan.folder}: stopped; the same command goes on with what is left")
                    time.sleep(POLL_SECONDS)
            except BaseException:
                for each in self.running:
                    each.process.kill()
                raise
        return self.failed

    def _step(self) -> bool:
        """Look after what runs, start what can; False when nothing is left."""
        for each in list(self.running):
            if each.process.poll() is not None:
                self._ended(each)
        busy = {each.job.name for each in self.running}
        left = [
            job for job in self.plan.jobs.values() if not (job.finished or job.name in busy or job.name in self.failed)
        ]
        for job in left:
            broken = [name for name in job.after if name in self.failed]
            if broken:
                self.failed[job.name] = f"not run: {broken[0]} failed"
            elif len(self.running) < self.parallel and all(self.plan.jobs[name].finished for name in job.after):
                self._start(job)
        return bool(self.running) or any(job.name not in self.failed for job in left)

    def _start(self, job: Job) -> None:
        lock = job.folder.with_name(f".{job.step}.lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the process of an earlier runner, which was killed, is still at it
            lock.close()
            return
        slot = min(set(range(self.parallel)) - {each.slot for each in self.running})
        log = job.log.open("ab")
        process = subprocess.Popen(
            [*PROGRAM, job.command, str(job.file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(self.threads, slot),
            pass_fds=[lock.fileno()],
            start_new_session=True,  # Ctrl-C reaches the runner alone, which asks each job to stop, once
        )
        say(f"{job.name}: started, log in {job.log}")
        self.running.append(_Running(job, process, slot, lock, log, not (job.folder / MARKER).exists()))

    def _ended(self, each: _Running) -> None:
        self.running.remove(each)
        each.log.close()
        each.lock.close()
        seconds = time.monotonic() - each.started
        if each.job.finished:
            if each.fresh:
                self.times.add(each.job, seconds)
            done = sum(job.finished for job in self.plan.jobs.values())
            left = self.times.left(self.parallel)
            say(
                f"[{done}/{len(self.plan.jobs)}] {each.job.name}: {seconds:.0f} s"
                + (f", {minutes(left)} left" if left else "")
            )
            return
        code = each.process.returncode
        self.failed[each.job.name] = f"exit code {code}: {last_line(each.job.log)} (log: {each.job.log})"
        say(f"{each.job.name}: failed, {self.failed[each.job.name]}")

    def _stop(self) -> None:
        """Ask every job to save its state, and wait until it has."""
        for each in self.running:
            each.process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for each in self.running:
            try:
                each.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.process.kill()
                say(f"{each.job.name}: killed, since it had not stopped within {STOP_SECONDS:.0f} s")


class Times:
    """What jobs took, kept in RUN/times.jsonl: estimates for those to come, per step."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.file = plan, plan.folder / "times.jsonl"

    def add(self, job: Job, seconds: float) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"job": job.name, "step": job.step, "seconds": round(seconds, 2)}) + "\n")

    def of_step(self, step: str) -> tuple[float | None, bool]:
        """(seconds, whether they were measured here rather than given in the recipe)."""
        taken = [line["seconds"] for line in self._lines() if line["step"] == step]
        if taken:
            return sum(taken) / len(taken), True
        steps = {**self.plan.recipe.stages, "benchmark": self.plan.recipe.benchmark}
        return steps[step].seconds, False

    def _lines(self) -> Iterator[dict[str, Any]]:
        """All that can be read: one that a kill cut short is left out."""
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else ():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    def left(self, parallel: int) -> float | None:
        """Seconds for all that is not finished; None where a step's time is not known."""
        seconds = [self.of_step(job.step)[0] for job in self.plan.jobs.values() if not job.finished]
        return None if any(each is None for each in seconds) else sum(each for each in seconds if each) / parallel


def write_job_files(plan: Plan) -> None:
    """Write each job's recipe; a folder that holds another run is refused.

    Raises:
        UserError: says which folder, and in what it differs.
    """
    for job in plan.jobs.values():
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        if (job.folder / MARKER).exists():
            open_run(job.recipe, PASSING if job.command == "evaluate" else ())
        text = recipe_text(job.recipe)
        if not job.file.exists() or job.file.read_text(encoding="utf-8") != text:
            job.file.write_text(text, encoding="utf-8")


def take_lock(folder: Path) -> IO[bytes]:
    """Hold the ablation's folder until the file that is returned is closed.

    Raises:
        UserError: another `mentor ablate` works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder}: another `mentor ablate` is at work in this folder") from None
    return lock


def environment(threads: int, slot: int) -> Mapping[str, str]:
    """Of a job: its threads, and its GPU where CUDA_VISIBLE_DEVICES names several."""
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    devices = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    if devices:
        own["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return {**os.environ, **own}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
