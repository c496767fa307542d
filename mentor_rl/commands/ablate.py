"""``mentor ablate``: arms, seeds, and what they say together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mentor_base.errors import UserError
from mentor_base.runlog import MARKER, write_atomically

if TYPE_CHECKING:
    from mentor_rl.ablation.jobs import Plan
    from mentor_rl.ablation.outcome import ArmOutcome, Outcome


def ablate(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="Of kind ablate, e.g. recipes/ablations/emoji_rewards.yaml.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides of the ablation.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Jobs at a time, each a process of its own.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each job; default: the cores over --parallel.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print arms, changes and time, and stop.")] = False,
    collect: Annotated[
        bool, typer.Option("--collect", help="Run nothing; make the tables of what is finished.")
    ] = False,
    write_jobs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run nothing; write scripts for one arm per GPU (accelerate, Slurm)."),
    ] = None,
    launch: Annotated[
        Path | None, typer.Option(help="With --write-jobs: accelerate configuration for arms on several GPUs.")
    ] = None,
) -> None:
    """Train and measure every arm of an ablation or a sweep; goes on where it was stopped, and finished arms stay."""
    from mentor_rl.ablation.jobs import plan_jobs
    from mentor_rl.ablation.recipe import AblateRecipe
    from mentor_rl.recipe_files import load_recipe

    loaded = load_recipe(recipe, overrides or [], need_inputs=not dry_run)
    if not isinstance(loaded, AblateRecipe):
        verb = "evaluate" if loaded.kind == "evaluate" else "train"
        raise UserError(f"{recipe}: kind: expected 'ablate', found '{loaded.kind}'; use `mentor {verb} {recipe}`")
    if launch is not None and (write_jobs is None or not launch.is_file()):
        problem = (
            "expected --write-jobs with it"
            if write_jobs is None
            else "expected an accelerate configuration, found no file"
        )
        raise UserError(f"--launch {launch}: {problem}")
    plan = plan_jobs(recipe, loaded, need_inputs=not (dry_run or collect))
    if dry_run:
        show_plan(plan, parallel)
        return
    from mentor_rl.ablation.runner import Runner, take_lock, write_job_files

    with take_lock(plan.folder):
        keep_recipe(plan)
        if write_jobs is not None:
            from mentor_rl.ablation.launch_files import write_launch_files

            write_job_files(plan)
            for file in write_launch_files(plan, write_jobs, launch):
                print(file)
            return
        failed = {} if collect else Runner(plan, parallel, threads).run()
        show_outcome(write_outcome(plan), plan.folder)
    if failed:
        raise UserError("\n".join(f"{name}: {why}" for name, why in failed.items()))


def keep_recipe(plan: Plan) -> None:
    """Write RUN/recipe.yaml. A grown or changed ablation may go on: its jobs refuse what does not fit them.

    Raises:
        UserError: a folder that holds something else.
    """
    from mentor_rl.commands.train import recipe_text

    marker = plan.folder / MARKER
    if marker.exists() and not _is_ablation(marker):
        raise UserError(f"{plan.folder}: holds another run; choose another run=...")
    if not marker.exists() and any(file.name != ".lock" for file in plan.folder.iterdir()):
        raise UserError(
            f"{plan.folder}: expected an empty folder or an ablation, found other files; choose another run=..."
        )
    write_atomically(marker, recipe_text(plan.recipe))


def _is_ablation(marker: Path) -> bool:
    return "kind: ablate" in marker.read_text(encoding="utf-8").splitlines()


def write_outcome(plan: Plan) -> Outcome:
    """RUN/results/ablation.json, .md, and RUN/report.html."""
    from mentor_rl.ablation.measure import outcome_of
    from mentor_rl.report.page import write_report

    outcome = outcome_of(plan)
    file = plan.folder / "results" / "ablation.json"
    outcome.write(file)
    write_atomically(file.with_suffix(".md"), outcome.markdown())
    write_report([plan.folder], plan.folder / "report.html")
    return outcome


def show_outcome(outcome: Outcome, folder: Path) -> None:
    """The tables on the terminal: values, with marks for what is beyond noise."""
    from rich.console import Console
    from rich.table import Table

    from mentor_rl.ablation.outcome import TITLES

    console = Console()
    for panel in outcome.panels():
        names = outcome.metrics(panel)
        table = Table(title=TITLES[panel], box=None, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("arm", max_width=28, overflow="fold")
        for name in ("seeds", *names):
            table.add_column(name, justify="right", overflow="fold")
        for name, arm in outcome.arms.items():
            table.add_row(name, str(len(arm.seeds)), *(_marked(arm, panel, metric) for metric in names))
        console.print(table)
    legend = f"▲ ▼ beyond noise against {outcome.reference}, over items and seeds; * trained on it"
    if outcome.facts:
        console.print(outcome.measured(), soft_wrap=True, markup=False)
    console.print(f"{legend}; intervals: {folder}/results/ablation.md", soft_wrap=True, markup=False)
    console.print(f"{folder}/report.html: open it in a browser", soft_wrap=True, markup=False)
    if outcome.missing:
        console.print(f"{len(outcome.missing)} runs are not finished", markup=False)


def _marked(arm: ArmOutcome, panel: str, metric: str) -> str:
    from mentor_rl.ablation.outcome import REWARDS
    from mentor_rl.evaluate.result import number

    cell = arm.panels.get(panel, {}).get(metric)
    if cell is None:
        return ""
    star = "*" if panel == REWARDS and metric in arm.trained else ""
    return f"{number(cell.value)}{star}{ {'up': '▲', 'down': '▼'}.get(cell.verdict, ' ') }"


def show_plan(plan: Plan, parallel: int) -> None:
    """Arms with their changes, jobs by step, and the time they will take."""
    from mentor_rl.ablation.runner import Times, minutes

    changes = {arm.name: arm.changes for arm in plan.arms}
    for name in plan.arm_names:
        if name in changes:
            texts = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes[name].items()]
            what = ", ".join(texts) or "nothing is changed"
        else:
            what = "what the first stage starts from"
        print(f"{name}: {what}{' (the reference)' * (name == plan.reference)}")
    times = Times(plan)
    for step in (*plan.recipe.stages, "benchmark"):
        jobs = [job for job in plan.jobs.values() if job.step == step]
        seconds, measured = times.of_step(step)
        source = "measured" if measured else "as the recipe says"
        how = "time unknown" if seconds is None else f"{seconds:.0f} s each, {source}"
        print(f"{step}: {len(jobs)} runs, {sum(job.finished for job in jobs)} finished; {how}")
    left = times.left(parallel)
    told = "time unknown until one of each step has run" if left is None else minutes(left)
    print(f"{len(plan.jobs)} runs, {parallel} at a time: {told}")
