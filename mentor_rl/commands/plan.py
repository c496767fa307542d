"""``mentor plan``: parameters, memory, time and the fitting launch file of a recipe, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from mentor_rl.plan.estimate import Plan

LABELS = {
    "vision": "vision tower",
    "connector": "connector",
    "text_encoder": "text encoder",
    "decoder": "decoder",
    "vq": "VQ tokenizer",
}


def plan_recipe(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Of kind sft or grpo.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Overrides; model.size=XL stands in for a policy not there yet."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Processes, one GPU each.")] = 8,
    gpu: Annotated[str, typer.Option(help="a100-80g, a100-40g, h100, h200, rtx4090, l4, ...")] = "a100-80g",
    utilisation: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the dense peak.")] = 0.4,
    checkpointing: Annotated[
        bool | None,
        typer.Option("--checkpointing/--no-checkpointing", help="Of gradients; default: the recipe's, both are shown."),
    ] = None,
    text_tokens: Annotated[int, typer.Option(min=1, help="Of a prompt, without its pictures.")] = 64,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Training rows of the mixture's tasks, where epochs are to be counted.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Bytes, FLOPs and seconds for programs.")] = False,
) -> None:
    """Estimate parameters, memory per GPU, FLOPs and hours; say which launch file fits 24, 40 and 80 GB."""
    from mentor_rl.plan.hardware import gpu_of

    gpu_of(gpu)  # a slip in a name costs no import of torch
    from mentor_rl.plan import estimate
    from mentor_rl.plan.calls import Machine
    from mentor_rl.plan.policy import facts_of
    from mentor_rl.plan.sizes import planned_steps, read_planned

    planned = read_planned(recipe, overrides or [])
    steps, counted = planned_steps(planned.recipe, rows)
    facts = facts_of(planned.config, planned.train)
    plan = estimate.make_plan(
        planned.recipe,
        facts,
        Machine(gpu, gpus, utilisation, text_tokens),
        steps,
        checkpointing,
        (*planned.notes, *counted),
    )
    if as_json:
        print(json.dumps(estimate.as_json(plan), indent=2))
    else:
        show(plan, recipe)


def show(plan: Plan, recipe: Path) -> None:
    """Print a plan as tables, verdicts and footnotes."""
    from rich.console import Console

    console, machine = Console(highlight=False), plan.machine
    console.print(
        f"{recipe}: {plan.kind}, size {plan.size}, {plan.precision}, on {machine.gpus} x {machine.gpu}, "
        f"{plan.step.micro_batch} {'pictures' if plan.kind == 'grpo' else 'examples'} per pass and GPU",
        markup=False,
        soft_wrap=True,
    )
    for table in (parameter_table(plan), memory_table(plan), step_table(plan)):
        console.print()
        console.print(table)
    console.print()
    for line in verdicts(plan):
        console.print(line, markup=False, soft_wrap=True)
    tokens, slots = plan.step.image_tokens, plan.step.prefix_slots
    console.print(f"\n{tokens + slots:,} tokens a step: {tokens:,} of images, {slots:,} of prefixes")
    console.print(f"[bold]{duration(plan)}[/bold]\n")
    for line in plan.assumptions:
        console.print(f"* {line}", markup=False, soft_wrap=True)


def parameter_table(plan: Plan) -> Table:
    from rich.table import Table

    table = Table("part", box=None, header_style="bold")
    for column in ("parameters", "trained"):
        table.add_column(column, justify="right")
    for name, label in LABELS.items():
        table.add_row(label, f"{plan.parameters[name]:,}", f"{plan.trained[name]:,}" if name in plan.trained else "-")
    total, trained = sum(plan.parameters.values()), sum(plan.trained.values())
    table.add_row("total", f"{total:,}", f"{trained:,}", style="bold")
    return table


def memory_table(plan: Plan) -> Table:
    """GiB per GPU; shares that are zero everywhere have no column."""
    from rich.table import Table

    from mentor_rl.plan.hardware import CARDS, GIB

    rows = [{**vars(way.states), **vars(way.work)} for way in plan.ways]
    shares = [name for name in rows[0] if any(row[name] for row in rows)]
    table = Table("GiB per GPU", box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("checkpointing", overflow="fold")
    for name in (*shares, "peak", "fits GB"):
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")  # no digit goes on a narrow terminal
    for way, row in zip(plan.ways, rows, strict=True):
        numbers = [f"{row[name] / GIB:.2f}" for name in shares]
        cards = " ".join(str(card) for card in CARDS if way.fits(card)) or "none"
        saving = "yes" if way.checkpointing else "no"
        table.add_row(way.launch.name, saving, *numbers, f"{way.peak / GIB:.2f}", cards)
    return table


def step_table(plan: Plan) -> Table:
    from rich.table import Table

    table = Table(f"a step, checkpointing {'on' if plan.checkpointing else 'off'}", box=None, header_style="bold")
    for column in ("TFLOP", "seconds"):
        table.add_column(column, justify="right")
    for phase, flops in plan.step.flops.items():
        if flops:
            table.add_row(phase, f"{flops / 1e12:,.4g}", f"{plan.step.seconds[phase]:.3g}")
    total = sum(plan.step.flops.values())
    table.add_row("total", f"{total / 1e12:,.4g}", f"{plan.step_seconds:.3g}", style="bold")
    return table


def verdicts(plan: Plan) -> list[str]:
    """Which launch file to take on cards of 24, 40 and 80 GB."""
    from mentor_rl.plan.hardware import CARDS, GIB

    lines = []
    for card in CARDS:
        way = plan.best(card)
        if way is None:
            least = min(plan.ways, key=lambda each: each.peak)
            lines.append(
                f"{card} GB: nothing fits; the least is {least.peak / GIB:.1f} GiB with {least.launch.file}"
                f"{' and checkpointing' if least.checkpointing else ''}"
            )
            continue
        saving = " with checkpointing" if way.checkpointing else ""
        lines.append(f"{card} GB: {way.launch.file}{saving}, {way.peak / GIB:.1f} GiB")
    return lines


def duration(plan: Plan) -> str:
    if plan.steps is None or plan.hours is None:
        return f"{plan.step_seconds:.3g} s a step"
    hours = f"{plan.hours:,.3g} hours, {plan.hours * plan.machine.gpus:,.3g} GPU hours"
    return f"{plan.steps:,} steps of {plan.step_seconds:.3g} s: {hours}"
