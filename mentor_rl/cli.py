"""The command line: ``mentor demo | train | evaluate | sample | export | report | compare | ablate | plan | ...``.

Only declarations stand here, so that ``mentor --help`` answers at once: each command imports its work when it runs.
A fault that the user can mend is one line on stderr and exit code 2; a run stopped on request ends with 130.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from mentor_rewards.usage import run

from mentor_rl.commands.ablate import ablate
from mentor_rl.commands.bench import bench_app
from mentor_rl.commands.checkpoints import import_checkpoint
from mentor_rl.commands.compare import compare
from mentor_rl.commands.data import data_app
from mentor_rl.commands.judge import judge_app
from mentor_rl.commands.plan import plan_recipe
from mentor_rl.commands.rate import rate_app
from mentor_rl.commands.recipes import recipes_app
from mentor_rl.commands.rewards import rewards_app
from mentor_rl.failures import exit_code, failure_line

app = typer.Typer(
    name="mentor",
    help="Reinforcement learning for autoregressive image generators that take text and reference pictures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(rewards_app, name="rewards")
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(judge_app, name="judge")
app.add_typer(rate_app, name="rate")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]


def finite(value: float) -> float:
    """A lower bound of typer's lets infinity pass."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number, found '{value}'")
    return value


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a fault, not only one line.")] = False,
) -> None:
    """Options before the command; ``main`` looks for --debug itself, since faults end there."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs, the report and the export.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of GRPO.")] = 150,
) -> None:
    """From the shipped checkpoint to a measurably better one: GRPO, benchmark, export and report."""
    from mentor_rl.demo import run_demo

    run_demo(out, steps)


@app.command()
def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="Of a kind that trains, e.g. recipes/emoji/grpo_subject.yaml.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. algorithm.group_size=4.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run a recipe that trains; a run that was stopped goes on where it was."""
    from mentor_rl.commands.train import train_recipe

    train_recipe(recipe, overrides or [], dry_run)


@app.command()
def evaluate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Of kind evaluate, e.g. recipes/emoji/bench.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help='Overrides, e.g. policies="{mine: runs/mine}".')
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run a benchmark recipe and print its table."""
    from mentor_rl.commands.evaluate import evaluate_recipe

    evaluate_recipe(recipe, overrides or [], dry_run)


@app.command()
def sample(
    checkpoint: Annotated[Path, typer.Argument(help="An exported folder or a run folder.")],
    text: Annotated[str, typer.Option(help="The prompt; put <image> where a picture belongs, default in front.")],
    image: Annotated[list[Path] | None, typer.Option(help="A reference picture; may be given several times.")] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("out.png"),
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many samples.")] = 1,
    grid: Annotated[bool, typer.Option("--grid", help="One sheet: the references, then all samples.")] = False,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    guidance: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="1: none; more follows the prompt closer.")
    ] = 1.0,
    temperature: Annotated[float, typer.Option(min=1e-3, callback=finite, help="Below 1: less varied.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0: off.")] = 0,
) -> None:
    """Draw pictures for one prompt."""
    from mentor_base.settings import Sampling
    from mentor_rl.sample import draw_samples

    sampling = Sampling(temperature=temperature, guidance_scale=guidance, top_k=top_k, seed=seed)
    draw_samples(checkpoint, text, image or [], out, number=number, grid=grid, sampling=sampling)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run folder; with --format mentor or llamagen any policy.")],
    out: Annotated[Path, typer.Argument(help="The folder (hf) or the .pt or .safetensors file to write.")],
    layout: Annotated[
        Literal["hf", "mentor", "llamagen"],
        typer.Option("--format", help="hf: a folder with a model card; else one file with that project's names."),
    ] = "hf",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Of the weights on disk; default: float32 (hf), else as they are stored."),
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="RUN/best instead of the last policy.")] = False,
) -> None:
    """Write a finished run as a folder that from_pretrained loads, with a model card; or as a reference checkpoint."""
    from mentor_rl.export import export_file, export_run

    if layout == "hf":
        print(export_run(run, out, dtype or "float32", best))
    else:
        print(export_file(run / "best" if best else run, out, layout, dtype))


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN|ABLATION|RESULT...", help="Run folders, ablations, results (.json).")
    ],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: report.html in the first.")] = None,
) -> None:
    """Write one self-contained HTML file about any number of runs: side by side, searchable, by keyboard."""
    from mentor_rl.report.page import write_report

    print(write_report(runs, out or (runs[0] if runs[0].is_dir() else runs[0].with_suffix(".html"))))


app.command("compare")(compare)
app.command("ablate")(ablate)
app.command("plan")(plan_recipe)
app.command("import")(import_checkpoint)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``mentor``: runs a command and turns faults into one line and an exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        sys.exit(run(app, arguments, "mentor"))
    except Exception as error:
        line = failure_line(error)
        if line is None or "--debug" in arguments:
            raise
        print(line, file=sys.stderr)
        sys.exit(exit_code(error))
