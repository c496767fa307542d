"""``mentor rewards serve`` and ``python -m mentor_rewards serve``: the rewards of a recipe behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve_rewards(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Any YAML file with a section 'rewards'.")],
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Serve only this entry; repeatable.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but a loopback one needs --token-env.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    token_env: Annotated[str | None, typer.Option(metavar="NAME", help="Environment variable with the token.")] = None,
    max_wait_ms: Annotated[float, typer.Option(min=0.0, help="How long a request waits for others.")] = 5.0,
    max_pictures: Annotated[int, typer.Option(min=1, help="Pictures that are scored together.")] = 64,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Largest request, in MiB.")] = 256,
) -> None:
    """Serve rewards over HTTP (JSON and PNG) to trainers that name them with `use: remote`."""
    from mentor_rewards.micro_batching import Batching
    from mentor_rewards.server import Settings, serve_recipe
    from mentor_rewards.wire import MEGA, Limits

    batching = Batching(max_wait=max_wait_ms / 1000, max_pictures=max_pictures)
    serve_recipe(recipe, Settings(host, port, token_env, batching, Limits(body=max_body_mb * MEGA)), only or ())
