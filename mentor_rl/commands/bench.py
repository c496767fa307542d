"""``mentor bench rollout | grpo | sft | load | table``: speed and memory, as records and as a page made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import torch

bench_app = typer.Typer(help="Measure speed and memory.", no_args_is_help=True)

Out = Annotated[Path | None, typer.Option(help="A JSON file for the record; `bench table` makes a page of such files.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of torch on the CPU; default: torch's own choice.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of weights and activations.")]


@bench_app.command("rollout")
def bench_rollout(
    size: Annotated[str, typer.Option(help="tiny, B, L, XL, ...")] = "B",
    batch: Annotated[int, typer.Option(min=1, help="Pictures.")] = 32,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts; batch / prompts pictures share one.")] = 4,
    guidance: Annotated[float, typer.Option(min=0.0)] = 7.5,
    tokens: Annotated[int, typer.Option(min=4, help="Of a picture; a square number.")] = 256,
    prefix: Annotated[int, typer.Option(min=1, help="Slots of the longest prompt.")] = 120,
    dtype: Dtype = "float32",
    against: Annotated[
        Literal["reference"] | None, typer.Option(help="Time the reference's way of working in turns with ours.")
    ] = None,
    engine: Annotated[
        Literal["loop", "compile", "graph"], typer.Option(help="Plain loop, torch.compile, or CUDA graphs.")
    ] = "loop",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    timed: Annotated[
        int | None, typer.Option(min=4, help="Steps per repeat, spread over the picture; default: all.")
    ] = None,
    compared: Annotated[
        int | None, typer.Option(min=1, help="Tokens whose greedy ids are compared; default: all.")
    ] = None,
    seed: int = 0,
    device: Device = "cpu",
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Decode speed on random weights: tokens/s, images/s, memory, and the ratio to the reference's way of working."""
    from mentor_rl.bench import rollout

    settings = rollout.RolloutSettings(
        size, batch, prompts, guidance, tokens, prefix, dtype, device, engine, against, repeats, timed, compared, seed
    )
    settings.check()
    _measure("rollout", vars(settings), lambda: rollout.bench_rollout(settings), device, threads, out)


@bench_app.command("grpo")
def bench_grpo(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Of the recipe.")] = None,
    size: Annotated[str, typer.Option(help="Of the recipe's policy.")] = "tiny",
    recipe: Annotated[Path, typer.Option(help="Of kind grpo.")] = Path("recipes/emoji/grpo_subject.yaml"),
    steps: Annotated[int, typer.Option(min=1, help="Timed steps, after one that warms up.")] = 5,
    tokens: Annotated[
        int | None, typer.Option(min=4, help="Put a random policy of --size with so many tokens in the policy's place.")
    ] = None,
    reference_slots: Annotated[
        int | None,
        typer.Option(min=1, help="Prefix slots of that policy's reference picture; a square number. Default: 100."),
    ] = None,
    against: Annotated[
        Literal["ar_grpo"] | None, typer.Option(help="Time AR-GRPO's way of working in turns with ours.")
    ] = None,
    padded_to: Annotated[
        int | None, typer.Option(min=1, help="Prefix slots of a prompt there; MENTOR's: 512. Default: the longest's.")
    ] = None,
    threads: Threads = None,
    out: Out = None,
) -> None:
    """What a GRPO step costs, by phase, with the real trainer; and the ratio to AR-GRPO's way of working."""
    from mentor_rl.bench import grpo

    settings = grpo.GrpoSettings(size, str(recipe), steps, overrides or [], tokens, reference_slots, against, padded_to)
    settings.check()
    _measure("grpo", vars(settings), lambda: grpo.bench_grpo(settings), None, threads, out)


@bench_app.command("sft")
def bench_sft(
    size: Annotated[str, typer.Option(help="tiny, B, L, XL, ...; with its own encoder.")] = "tiny",
    batch: Annotated[int, typer.Option(min=1, help="Samples.")] = 32,
    dtype: Dtype = "float32",
    text: Annotated[int, typer.Option(min=1, help="Text tokens of a prompt, beside its picture.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps, after one that warms up.")] = 3,
    checkpointing: Annotated[bool, typer.Option(help="Of gradients.")] = False,
    device: Device = "cpu",
    threads: Threads = None,
    out: Out = None,
) -> None:
    """A supervised step on random weights: tokens/s, memory, and the share of the machine's product rate (MFU)."""
    from mentor_rl.bench import sft

    settings = sft.SftSettings(size, batch, dtype, text, steps, device, checkpointing)
    _measure("sft", vars(settings), lambda: sft.bench_sft(settings), device, threads, out)


@bench_app.command("load")
def bench_load(
    source: Annotated[Path | None, typer.Argument(help="A policy's folder; default: random weights of --size.")] = None,
    size: Annotated[str | None, typer.Option(help="Make, import and load a LlamaGen checkpoint of this size.")] = None,
    out: Out = None,
) -> None:
    """Time and peak memory of importing and loading a checkpoint."""
    from mentor_rl.bench import load

    asked = {"source": f"random {size}" if source is None else source.name}
    _measure("load", asked, lambda: load.bench_load(source, size), None, None, out)


@bench_app.command("table")
def bench_table(
    folder: Annotated[Path, typer.Argument(help="Folder with records.")] = Path("benchmarks/records"),
    out: Annotated[Path | None, typer.Option(help="The Markdown file; default: print it.")] = None,
) -> None:
    """Make the page of all records in a folder."""
    from mentor_base.errors import UserError
    from mentor_rl.bench.record import Record, page

    records = [Record.read(file) for file in sorted(folder.glob("*.json"))]
    if not records:
        raise UserError(f"{folder}: expected records of `mentor bench` (*.json), found none")
    text = TITLE + page(records)
    if out is None:
        print(text)
    else:
        out.write_text(text, encoding="utf-8")


TITLE = """# Benchmarks

Made by `mentor bench table` from the records in `records/`; `run_all.sh` takes them all anew. Times are medians with
the lowest and highest of the repeats. Every command below can be run as it stands.

"""


def _measure(
    bench: str, settings: dict[str, Any], work: Any, device: str | None, threads: int | None, out: Path | None
) -> None:
    """Run a benchmark, print its row, and write its record."""
    import torch

    from mentor_rl.bench.machine import machine_facts, versions
    from mentor_rl.bench.record import Record, table

    place = _device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    facts = machine_facts(place)
    record = Record.of(bench, facts, versions(), settings, work())
    print(table([record]), end="")
    if out is not None:
        record.write(out)


def _device(name: str | None) -> torch.device:
    import torch

    from mentor_base.errors import UserError

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device: expected cpu or cuda, found '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: expected a GPU that torch sees, found none")
    return torch.device(name)
