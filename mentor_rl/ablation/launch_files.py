"""An ablation as files for other machines: one lane (an arm with one seed) per GPU, by hand or by Slurm.

    DIR/lanes/000_full_seed0.sh    its jobs, one after the other, through accelerate
    DIR/local.sh                   all lanes, one at a time on each GPU of this machine
                                   (an accelerate configuration of several processes: on each so many GPUs)
    DIR/slurm.sh                   submits DIR/wave_0.sbatch and so on: arrays, each after the one before
    DIR/wave_0.txt                 the lanes of an array

A stage that several lanes share is a lane of its own in an earlier wave. Every file goes on where it was stopped when
it is run again; `mentor ablate RECIPE --collect` makes the tables of what is finished.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from mentor_base.errors import UserError
from mentor_rl.ablation.jobs import BENCHMARK, Job, Plan
from mentor_rl.recipe import GrpoRecipe, SftRecipe

ALONE = ("--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no")


@dataclass(frozen=True)
class Lane:
    """Jobs that run one after the other; ``wave`` n needs all lanes of the waves before."""

    name: str
    wave: int
    jobs: tuple[Job, ...]


def lanes_of(plan: Plan) -> list[Lane]:
    """The jobs of a plan, dealt out so that lanes of one wave do not wait for each other."""
    users: dict[str, set[tuple[str, int]]] = {}
    for key, steps in plan.members.items():
        for name in steps.values():
            users.setdefault(name, set()).add(key)
    shared = [job for job in plan.jobs.values() if len(users[job.name]) > 1]
    waves: dict[str, int] = {}
    lanes = []
    for job in shared:  # in the order of their stages, so that what a job waits for is placed before it
        waves[job.name] = _wave((job,), waves)
        lanes.append(Lane(job.name.replace("/", "_"), waves[job.name], (job,)))
    for (arm, seed), steps in plan.members.items():
        own = tuple(plan.jobs[name] for name in steps.values() if name not in waves)
        lanes.append(Lane(f"{arm}_seed{seed}", _wave(own, waves), own))
    return sorted(lanes, key=lambda lane: lane.wave)


def _wave(jobs: tuple[Job, ...], waves: Mapping[str, int]) -> int:
    return max((waves[name] + 1 for job in jobs for name in job.after if name in waves), default=0)


def write_launch_files(plan: Plan, folder: Path, launch: Path | None) -> list[Path]:
    """Write the files and return local.sh and slurm.sh.

    Args:
        launch: an accelerate configuration (recipes/launch/) that training runs under, for arms on several GPUs;
            default: one process.

    Raises:
        UserError: a ``launch`` that does not say how many processes there are.
    """
    gpus = 1 if launch is None else processes_of(launch)
    (folder / "lanes").mkdir(parents=True, exist_ok=True)
    waves: dict[int, list[Path]] = {}
    for number, lane in enumerate(lanes_of(plan)):
        file = folder / "lanes" / f"{number:03d}_{lane.name}.sh"
        _write(file, [f"# {', '.join(job.name for job in lane.jobs)}", *(_command(job, launch) for job in lane.jobs)])
        waves.setdefault(lane.wave, []).append(file)
    for wave, files in waves.items():
        (folder / f"wave_{wave}.txt").write_text("".join(f"{file}\n" for file in files), encoding="utf-8")
        _write(folder / f"wave_{wave}.sbatch", _array(plan, folder, wave, len(files), gpus))
    _write(folder / "local.sh", _local(folder, list(waves), gpus))
    _write(folder / "slurm.sh", _submit(folder, list(waves)))
    return [folder / "local.sh", folder / "slurm.sh"]


def processes_of(launch: Path) -> int:
    """How many processes, and so GPUs, an accelerate configuration asks for.

    Raises:
        UserError: it does not say.
    """
    try:
        held = yaml.safe_load(launch.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        held = None
    count = held.get("num_processes") if isinstance(held, dict) else None
    if not isinstance(count, int) or count < 1:
        raise UserError(f"--launch {launch}: num_processes: expected a whole number above 0, found {count!r}")
    return count


def _command(job: Job, launch: Path | None) -> str:
    if job.step == BENCHMARK:
        return shlex.join(["mentor", "evaluate", str(job.file)])
    assert isinstance(job.recipe, (SftRecipe, GrpoRecipe))
    precision = "bf16" if job.recipe.optimisation.precision == "bf16" else "no"
    how = ["--config_file", str(launch)] if launch is not None else [*ALONE, "--mixed_precision", precision]
    return shlex.join(["accelerate", "launch", *how, "-m", "mentor_rl", "train", str(job.file)])


def _array(plan: Plan, folder: Path, wave: int, count: int, gpus: int) -> list[str]:
    return [
        f"#SBATCH --job-name={plan.folder.name}-{wave}",
        f"#SBATCH --array=0-{count - 1}",
        f"#SBATCH --gres=gpu:{gpus}",
        "#SBATCH --requeue",
        f"#SBATCH --output={folder}/%x_%a.log",
        "#SBATCH --open-mode=append",
        f'bash "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(f"{folder}/wave_{wave}.txt")})"',
    ]


def _submit(folder: Path, waves: list[int]) -> list[str]:
    lines = ["# Run it where `mentor ablate` was run. Options behind the name go to sbatch: --partition=..."]
    for wave in waves:
        after = "" if wave == waves[0] else '--dependency=afterok:"$job" '
        lines.append(f'job=$(sbatch --parsable {after}"$@" {shlex.quote(f"{folder}/wave_{wave}.sbatch")})')
        lines.append(f'echo "wave {wave}: job $job"')
    return lines


def _local(folder: Path, waves: list[int], each: int) -> list[str]:
    """GPUs are handed out as tokens, ``each`` of them together: a lane takes one from the pipe and puts it back."""
    lines = [
        "# usage: local.sh [NUMBER OF GPUS], default: all that nvidia-smi lists. Run it where `mentor ablate` was run.",
        "gpus=${1:-$(nvidia-smi --list-gpus | wc -l)}",
        f'if ((gpus < {each})); then echo "expected {each} or more GPUs, found $gpus" >&2; exit 2; fi',
        'pipe=$(mktemp -u) && mkfifo "$pipe" && exec 9<>"$pipe" && rm "$pipe"',
        f"for ((gpu = 0; gpu + {each} <= gpus; gpu += {each})); do seq -s, $gpu $((gpu + {each} - 1)) >&9; done",
        "failed=$(mktemp)",
    ]
    for wave in waves:
        lines += [
            "while read -r lane; do",
            "  read -r gpu <&9",
            '  { CUDA_VISIBLE_DEVICES=$gpu bash "$lane" >>"${lane%.sh}.log" 2>&1 9>&- || echo "$lane" >>"$failed"',
            "    echo $gpu >&9; } &",
            f"done <{shlex.quote(f'{folder}/wave_{wave}.txt')}",
            "wait",
        ]
    return [*lines, 'if [ -s "$failed" ]; then echo "failed:"; cat "$failed"; exit 1; fi']


def _write(file: Path, lines: list[str]) -> None:
    head = ["#!/usr/bin/env bash"]
    options = [line for line in lines if line.startswith("#SBATCH")]
    rest = [line for line in lines if not line.startswith("#SBATCH")]
    file.write_text("\n".join([*head, *options, "set -euo pipefail", *rest]) + "\n", encoding="utf-8")
    file.chmod(0o755)
