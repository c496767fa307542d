"""``mentor rewards ...`` and ``python -m mentor_rewards ...``: one set of commands behind two names.

Declarations, and how results are printed; the work is imported when a command runs. Faults that the user can mend are
RewardErrors, which the program that runs the app turns into one line and exit code 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mentor_rewards.server_command import serve_rewards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mentor_rewards.contract import AnyReward, RewardBatch, RewardEntry
    from mentor_rewards.reward_scores import RewardStats
    from mentor_rewards.testing import CheckResult

rewards_app = typer.Typer(
    help="Look at image rewards, try them on pictures, write one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
rewards_app.command("serve")(serve_rewards)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A registered name, file.py:Class or package.module:Class.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="Of the constructor; several rewards: NAME.KEY=VALUE."),
]
Images = Annotated[Path, typer.Option("--images", metavar="DIR", help="Folder of pictures.")]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="csv, jsonl or parquet; default: prompts.jsonl in the folder."),
]
Device = Annotated[str, typer.Option(help="Where rewards are loaded: cpu, cuda:0, ...")]
DType = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")]


@rewards_app.command("list")
def list_rewards() -> None:
    """Every registered reward and where it comes from; reads metadata only, imports none of them."""
    from mentor_rewards.registry import listed

    rows = [("reward", "class", "package")]
    for found in listed():
        note = f"  (name taken by a built-in: use {found.target})" if found.shadowed else ""
        rows.append((found.name, found.target, found.package + note))
    _print_table(rows)


@rewards_app.command("show")
def show_reward(name: Name) -> None:
    """What a reward measures, needs and takes as options; loads no weights."""
    from mentor_rewards.registry import describe

    found = describe(name)
    print(f"{found.name}: {found.about}")
    lines = [("class", found.where), ("file", found.file)]
    if found.spec is not None:
        spec = found.spec
        low, high = ("unbounded" if bound is None else f"{bound:g}" for bound in spec.range)
        yes = [flag for flag in ("deterministic", "batch_invariant", "network") if getattr(spec, flag)]
        lines += [
            ("version", spec.version),
            ("licence", spec.licence),
            ("needs", ", ".join(spec.columns) or "the picture only"),
            ("range", f"{low} to {high}, {'higher' if spec.higher_is_better else 'lower'} is better"),
            ("declared", ", ".join(yes) or "nothing"),
            ("probes", ", ".join(sorted(spec.probes)) or "none"),
            *(("weights", f"{file} sha256 {digest}") for file, digest in spec.weights.items()),
        ]
    for option in found.options:
        default = "required" if option.default is None else f"default {option.default}"
        lines.append(("option", f"{option.name}: {option.type}, {default}"))
    _print_table([(f"  {key}", value) for key, value in lines])


@rewards_app.command("new")
def new_reward(
    name: Annotated[str, typer.Argument(metavar="NAME", help="snake_case; the name that recipes will use.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to make; default: ./NAME.")] = None,
) -> None:
    """Write a package with a working reward, its entry point and its tests: installable at once."""
    from mentor_rewards.new_plugin import write_plugin

    folder = write_plugin(name, out)
    print(f"{folder}\nnext: pip install -e {folder} && mentor rewards check {name} && pytest {folder}")


@rewards_app.command("check")
def check_reward(
    name: Name,
    option: Options = None,
    fact: Annotated[
        list[str] | None, typer.Option("--fact", metavar="KEY=VALUE", help="Metadata of the prompts: style=noto.")
    ] = None,
    rule: Annotated[list[str] | None, typer.Option("--rule", metavar="RULE", help="Only this rule.")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Check on these pictures, not on drawn ones.")
    ] = None,
    prompts: Prompts = None,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Hold a reward to every rule of the contract; exit code 1 when one is broken."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # weights come from the disk: asking the hub would be a connection
    from mentor_rewards.registry import build_reward
    from mentor_rewards.testing import Case, try_rule

    entry = _entries([name], option, device, dtype)[_entry_name(name)]
    batch = _check_batch(fact, images, prompts)
    _check_needs(name, build_reward(name, entry), batch)  # these are faults of the command, not of the reward
    case = Case(lambda: build_reward(name, entry), batch, device=device, dtype=dtype)
    by_outcome: dict[str, list[str]] = {"holds": [], "exempt": [], "blocked": [], "broken": []}
    for each in _rules(rule):
        result = try_rule(each, case)
        by_outcome[result.outcome].append(each.name)
        _print_result(result)
    case.close()
    broken, blocked = by_outcome["broken"], by_outcome["blocked"]
    count = sum(map(len, by_outcome.values()))
    print(f"{name}: {len(by_outcome['holds'])} of {count} rules hold, {len(by_outcome['exempt'])} exempt")
    if broken:
        untried = f"; {len(blocked)} could not be tried" if blocked else ""
        print(f"{name}: {len(broken)} of {count} rules are broken: {', '.join(broken)}{untried}", file=sys.stderr)
        raise typer.Exit(1)


@rewards_app.command("score")
def score_pictures(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="One reward or several.")],
    images: Images,
    prompts: Prompts = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="csv or parquet; goes on where it was. Default: CSV on stdout."),
    ] = None,
    option: Options = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows read, scored and written together.")] = 64,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Raw scores of a folder of pictures; the same command goes on after a kill."""
    from mentor_rewards.composite import Composite
    from mentor_rewards.score_folder import score_folder

    with Composite(_entries(names, option, device, dtype, batch)) as composite, _progress() as progress:
        found = score_folder(composite, images, prompts, out, batch, sys.stdout, progress)
    if found.resumed:
        print(f"{out}: {found.resumed} rows were there already", file=sys.stderr)
    _print_summary(found.statistics, len(found.table))


def _rules(names: Sequence[str] | None) -> Sequence[Any]:
    from mentor_rewards.contract import RewardError, nearest
    from mentor_rewards.testing import RULES

    by_name = {rule.name: rule for rule in RULES}
    for name in names or ():
        if name not in by_name:
            raise RewardError(f"--rule: unknown rule '{name}'; {nearest(name, by_name)}")
    return [by_name[name] for name in names] if names else RULES


def _check_batch(facts: Sequence[str] | None, images: Path | None, prompts: Path | None) -> RewardBatch:
    from mentor_rewards.contract import RewardError
    from mentor_rewards.score_rows import read_listing
    from mentor_rewards.testing import sample_batch

    if images is None and prompts is not None:
        raise RewardError(f"--prompts: expected --images DIR beside it, with the pictures that {prompts} names")
    if images is None:
        batch = sample_batch()
    else:
        listing = read_listing(images, prompts)
        if len(listing) < 3:
            raise RewardError(f"{images}: expected at least 3 pictures to check with, found {len(listing)}")
        batch = listing.batch(range(min(8, len(listing))))
    stated = _pairs(facts, "--fact")
    return replace(batch, metadata=[{**known, **stated} for known in batch.metadata])


def _check_needs(name: str, reward: AnyReward, batch: RewardBatch) -> None:
    from mentor_rewards.contract import RewardError
    from mentor_rewards.reward_scores import columns_of

    lacking = [column for column in reward.spec.columns if column not in columns_of(batch)]
    if lacking:
        raise RewardError(
            f"{name}: needs {' and '.join(lacking)}, found none with the pictures to check on; give --fact KEY=VALUE, "
            "or --images DIR with --prompts FILE"
        )


def _entry_name(use: str) -> str:
    return use.rpartition(":")[2]


def _entries(
    names: Sequence[str], options: Sequence[str] | None, device: str, dtype: str, batch: int = 64
) -> dict[str, RewardEntry]:
    """Entries by the name that their scores get, with the options of each."""
    from mentor_rewards.contract import RewardEntry, RewardError, nearest

    by_name: dict[str, dict[str, Any]] = {}
    for use in names:
        if _entry_name(use) in by_name:
            raise RewardError(f"{use}: two rewards are called '{_entry_name(use)}'; score them one after the other")
        by_name[_entry_name(use)] = {}
    for key, value in _pairs(options, "--option").items():
        owner = max((name for name in by_name if key.startswith(f"{name}.")), key=len, default=None)
        if owner is None and len(by_name) > 1:
            known = nearest(key.partition(".")[0], by_name)
            raise RewardError(f"--option: expected NAME.KEY=VALUE for one of several rewards, found '{key}'; {known}")
        by_name[owner or next(iter(by_name))][key.removeprefix(f"{owner}.")] = value
    return {
        name: RewardEntry.model_validate(
            {"use": use, "role": "monitor", "options": by_name[name], "device": device, "dtype": dtype, "batch": batch}
        )
        for use, name in ((use, _entry_name(use)) for use in names)
    }


def _pairs(texts: Sequence[str] | None, name: str) -> dict[str, Any]:
    """``key=value`` options; values are read as YAML."""
    import yaml

    from mentor_rewards.contract import RewardError
    from mentor_rewards.strict_yaml import parse_value

    pairs = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RewardError(f"{name}: expected KEY=VALUE, found '{text}'")
        try:
            pairs[key] = parse_value(value)
        except yaml.YAMLError as error:
            raise RewardError(f"{name}: {key}: not a YAML value: '{value}'") from error
    return pairs


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr when it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("scoring", total=None)
    with bar if sys.stderr.isatty() else nullcontext():
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_result(result: CheckResult) -> None:
    if result.outcome == "holds":
        print(f"holds    {result.rule.name}: {result.rule.states}")
    elif result.outcome == "broken":
        print(f"BROKEN   {result.explanation()}")
    else:
        print(f"{result.outcome:8} {result.rule.name}: {result.note}")


def _print_summary(statistics: Mapping[str, RewardStats], rows: int) -> None:
    table: list[Sequence[str]] = [
        ("reward", "rows", "missing", "failed", "mean", "std", "std in groups", "saturated", "seconds")
    ]
    for name, stats in statistics.items():
        shares = f"{100 * stats.missing:.1f} %", f"{100 * stats.failed:.1f} %"
        spread = tuple(f"{value:.4g}" for value in (stats.mean, stats.std, stats.group_std))
        table.append((name, str(rows), *shares, *spread, f"{100 * stats.saturated:.1f} %", f"{stats.seconds:.1f}"))
    _print_table(table, sys.stderr)


def _print_table(rows: Sequence[Sequence[str]], file: Any = None) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(cells.rstrip(), file=file or sys.stdout)
