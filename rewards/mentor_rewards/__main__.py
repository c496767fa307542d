"""``python -m mentor_rewards``: list, describe, score and check rewards without any of the rest of the project.

    python -m mentor_rewards list
    python -m mentor_rewards describe colour_match
    python -m mentor_rewards score --reward colour_match --reward ./sharp.py:Sharpness --option radius=2 FOLDER
    python -m mentor_rewards check ./sharp.py:Sharpness

An option belongs to the reward before it. Scores are JSON lines on stdout, statistics go to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mentor_rewards.contract import RewardEntry, RewardError
from mentor_rewards.registry import build_reward, describe, names
from mentor_rewards.server import add_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 for success, 1 for a reward that breaks the contract, 2 for wrong input."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.command(parsed)
    except RewardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mentor_rewards", description="Image rewards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="names of all rewards")
    listing.set_defaults(command=_list)
    about = commands.add_parser("describe", help="options and facts of one reward")
    about.add_argument("reward", help="name, file.py:Class or package.module:Class")
    about.set_defaults(command=_describe)
    score = commands.add_parser("score", help="score a folder of pictures")
    score.add_argument("--reward", dest="use", action=_AddReward, required=True, metavar="REWARD")
    score.add_argument("--option", dest="use", action=_AddOption, metavar="KEY=VALUE", help="of the reward before it")
    score.add_argument("--prompts", type=Path, help="JSON lines; default: prompts.jsonl in the folder, if there")
    score.add_argument("folder", type=Path)
    score.set_defaults(command=_score)
    check = commands.add_parser("check", help="run the contract checks")
    check.add_argument("use", action=_AddReward, metavar="REWARD")
    check.add_argument("--option", dest="use", action=_AddOption, metavar="KEY=VALUE")
    check.add_argument("--metadata", default="{}", help="JSON object: facts that the reward needs of a prompt")
    check.set_defaults(command=_check)
    add_arguments(commands.add_parser("serve", help="serve the rewards of a recipe over HTTP"))
    return parser


class _AddReward(argparse.Action):
    """Begins a new (name, options) pair."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        pairs = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*pairs, (value, {})])


class _AddOption(argparse.Action):
    """Adds KEY=VALUE (the value read as YAML) to the last pair."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        key, equals, text = str(value).partition("=")
        pairs = getattr(namespace, self.dest)
        if not equals or not pairs:
            parser.error(f"expected KEY=VALUE after a reward, found {value!r}")
        pairs[-1][1][key] = yaml.safe_load(text)


def _list(_: argparse.Namespace) -> int:
    for name, where in sorted(names().items()):
        print(f"{name:26} {where}")
    return 0


def _describe(parsed: argparse.Namespace) -> int:
    found = describe(parsed.reward)
    print(f"{found.name}  ({found.where})\n{found.about}")
    if found.spec is not None:
        print(f"needs: {', '.join(found.spec.columns) or 'pictures only'}\nrange: {list(found.spec.range)}")
    for option in found.options:
        print(f"option {option.name}: {option.type} = {'required' if option.default is None else option.default}")
    return 0


def _score(parsed: argparse.Namespace) -> int:
    from mentor_rewards.composite import Composite
    from mentor_rewards.score_folder import score_folder

    entries = {use.rpartition(":")[2]: _entry(use, options) for use, options in parsed.use}
    with Composite(entries) as composite:
        found = score_folder(composite, parsed.folder, parsed.prompts)
    for row in found.rows:
        print(json.dumps(row))
    for name, statistics in found.statistics.items():
        print(name, " ".join(f"{key}={value:.4g}" for key, value in statistics.items()), file=sys.stderr)
    return 0


def _check(parsed: argparse.Namespace) -> int:
    from mentor_rewards.testing import run_checks, sample_batch

    use, options = parsed.use[0]
    metadata = json.loads(parsed.metadata)
    batch = sample_batch([metadata]) if metadata else sample_batch()
    results = run_checks(lambda: build_reward(use, _entry(use, options)), batch)
    for result in results:
        print(
            f"{'ok  ' if result.problem is None else 'FAIL'} {result.rule}"
            + f": {result.problem}" * bool(result.problem)
        )
    return int(any(result.problem for result in results))


def _entry(use: str, options: dict[str, Any]) -> RewardEntry:
    return RewardEntry(use=use, role="monitor", options=options)


if __name__ == "__main__":
    sys.exit(main())
