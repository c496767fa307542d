"""``mentor rewards list | describe | score | check``: look at rewards, and try them, without a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mentor_base.errors import UserError
from mentor_rl.commands.reward_server import serve_rewards

rewards_app = typer.Typer(help="Look at rewards, and try them on pictures.", no_args_is_help=True)
rewards_app.command("serve")(serve_rewards)

Name = Annotated[str, typer.Argument(metavar="REWARD", help="A registered name, or file.py:Class.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A constructor option of the reward.")
]
Facts = Annotated[
    list[str] | None, typer.Option("--fact", metavar="KEY=VALUE", help="Metadata of the prompt, e.g. style=noto.")
]


@rewards_app.command("list")
def list_rewards() -> None:
    """Every registered reward and where it comes from."""
    from mentor_rewards.registry import names
    from rich.console import Console
    from rich.table import Table

    table = Table("reward", "from", box=None, header_style="bold")
    for name, where in sorted(names().items()):
        table.add_row(name, where)
    Console().print(table)


@rewards_app.command("describe")
def describe_reward(reward: Name) -> None:
    """What a reward measures, needs and takes as options."""
    from mentor_rewards.registry import describe
    from rich.console import Console
    from rich.markup import escape

    found = describe(reward)
    console = Console(highlight=False)
    console.print(f"[bold]{escape(found.name)}[/]  {escape(found.where)}\n{escape(found.about)}", soft_wrap=True)
    if found.spec is not None:
        spec = found.spec
        low, high = ("-" if bound is None else f"{bound:g}" for bound in spec.range)
        console.print(f"needs: {', '.join(spec.columns) or 'the picture only'}")
        console.print(f"range: {low} to {high}, {'higher' if spec.higher_is_better else 'lower'} is better")
        console.print(f"version: {spec.version}; licence of the weights: {escape(spec.licence)}")
    for option in found.options:
        default = "required" if option.default is None else f"default {option.default}"
        console.print(escape(f"option {option.name}: {option.type}, {default}"))


@rewards_app.command("score")
def score_pictures(
    reward: Name,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...")],
    prompt: Annotated[str, typer.Option(help="The text that the pictures were asked for.")] = "",
    reference: Annotated[list[Path] | None, typer.Option(help="A reference picture of all pictures.")] = None,
    subject: Annotated[str | None, typer.Option(help="Name of the subject.")] = None,
    fact: Facts = None,
    option: Options = None,
) -> None:
    """Raw scores of pictures, one line each; a picture that cannot be scored gets its reason."""
    from mentor_rewards.composite import Composite
    from mentor_rewards.contract import RewardBatch, RewardEntry

    from mentor_rl.pictures import open_picture

    images = [open_picture(path) for path in pictures]
    references = tuple(open_picture(path) for path in reference or [])
    n = len(images)
    batch = RewardBatch(
        images=images,
        prompts=[prompt] * n,
        references=[references] * n,
        subjects=[subject] * n,
        group_ids=list(range(n)),
        metadata=[_pairs(fact, "--fact")] * n,
    )
    entry = RewardEntry(use=reward, role="monitor", options=_pairs(option, "--option"))
    with Composite({reward: entry}) as composite:
        scores = composite.score(batch, tolerate=True)
    for path, value, reason in zip(pictures, scores.raw[reward], scores.reasons[reward], strict=True):
        print(f"{path}: {reason if value is None else format(value, '.6g')}")


@rewards_app.command("check")
def check_reward(reward: Name, fact: Facts = None, option: Options = None) -> None:
    """Hold a reward to the contract on drawn pictures: numbers, repeatability, independence of neighbours, ..."""
    from mentor_rewards.contract import RewardEntry
    from mentor_rewards.registry import build_reward
    from mentor_rewards.testing import run_checks, sample_batch

    entry = RewardEntry(use=reward, options=_pairs(option, "--option"))
    facts = _pairs(fact, "--fact")
    build_reward(reward, entry)  # an unknown name or option is a fault of the command, not of the reward
    results = run_checks(lambda: build_reward(reward, entry), sample_batch([facts] if facts else None))
    for result in results:
        print(f"{result.rule}: {result.problem or 'holds'}")
    broken = sum(result.problem is not None for result in results)
    if broken:
        raise UserError(f"{reward}: {broken} of {len(results)} rules are broken")


def _pairs(texts: Sequence[str] | None, name: str) -> dict[str, Any]:
    """``key=value`` options; values are read as YAML."""
    from mentor_rl.strict_yaml import parse_value

    pairs = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"{name}: expected key=value, found '{text}'")
        pairs[key] = parse_value(value)
    return pairs
