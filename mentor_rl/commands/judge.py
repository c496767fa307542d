"""``mentor judge serve``: the judge's vLLM server, launched with the options that the judge rewards expect."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

judge_app = typer.Typer(help="The judge behind qwen_vl_t2i and qwen_vl_subject.", no_args_is_help=True)


@judge_app.callback()
def judge() -> None:
    """The judge behind qwen_vl_t2i and qwen_vl_subject."""  # a callback keeps 'serve' a subcommand while it is alone


@judge_app.command("serve")
def serve_judge(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENT...]", help="Further arguments for vllm.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id; default: Qwen2.5-VL-7B.")] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model; default: as --model.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter of the environment that has vllm.")] = None,
    pictures: Annotated[int | None, typer.Option(min=1, help="Most pictures of one question.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Longest question with its answer, tokens.")] = None,
    start_timeout: Annotated[float | None, typer.Option(min=1.0, help="Seconds until it has to be healthy.")] = None,
    log: Annotated[Path | None, typer.Option(help="File for the server's output.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
) -> None:
    """Launch a judge, wait until it is healthy, and stop it on Ctrl-C or SIGTERM.

    Defaults are those of the option `serve` of a judge reward: `mentor rewards show qwen_vl_t2i`.
    """
    from mentor_rewards.judge_server import DEFAULT_MODEL, ServeOptions, run_until_stopped

    model = model or DEFAULT_MODEL
    given = {
        "port": port,
        "python": python,
        "arguments": tuple(arguments or ()),
        "pictures": pictures,
        "context": context,
        "start_timeout": start_timeout,
        "log": log,
    }
    options = ServeOptions.model_validate({"model": model, **{k: v for k, v in given.items() if v is not None}})
    print(shlex.join(options.command(name or model)), flush=True)
    if dry_run:
        return
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        run_until_stopped(
            options, name or model, on_ready=lambda url: print(f"ready: {url} (log: {options.log})", flush=True)
        )
    finally:
        signal.signal(signal.SIGTERM, before)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
