"""``mentor judge serve``: the judge's vLLM server, launched with the options that the judge rewards expect."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from mentor_rewards.judge_server import DEFAULT_MODEL, ServeOptions, run_until_stopped

judge_app = typer.Typer(help="The judge behind qwen_vl_t2i and qwen_vl_subject.", no_args_is_help=True)
DEFAULT = ServeOptions()


@judge_app.callback()
def judge() -> None:
    """The judge behind qwen_vl_t2i and qwen_vl_subject."""  # a callback keeps 'serve' a subcommand while it is alone


@judge_app.command("serve")
def serve_judge(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENT...]", help="Further arguments for vllm.")
    ] = None,
    model: Annotated[str, typer.Option(help="Folder or hub id.")] = DEFAULT_MODEL,
    name: Annotated[str | None, typer.Option(help="What requests call the model; default: as --model.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = DEFAULT.port,
    python: Annotated[str, typer.Option(help="Interpreter of the environment that has vllm.")] = DEFAULT.python,
    pictures: Annotated[int, typer.Option(min=1, help="Most pictures of one question.")] = DEFAULT.pictures,
    context: Annotated[int, typer.Option(min=1, help="Longest question with its answer, tokens.")] = DEFAULT.context,
    start_timeout: Annotated[float, typer.Option(help="Seconds until it has to be healthy.")] = DEFAULT.start_timeout,
    log: Annotated[Path, typer.Option(help="File for the server's output.")] = DEFAULT.log,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
) -> None:
    """Launch a judge, wait until it is healthy, and stop it on Ctrl-C or SIGTERM."""
    options = ServeOptions(
        model=model,
        port=port,
        python=python,
        arguments=tuple(arguments or ()),
        pictures=pictures,
        context=context,
        start_timeout=start_timeout,
        log=log,
    )
    print(shlex.join(options.command(name or model)), flush=True)
    if dry_run:
        return
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        run_until_stopped(options, name or model, on_ready=lambda url: print(f"ready: {url} (log: {log})", flush=True))
    finally:
        signal.signal(signal.SIGTERM, before)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
