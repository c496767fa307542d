"""Commands that were given wrongly, each told in one line: where, what is wrong, the nearest valid name.

typer shows such a fault as the usage of the command and a box of several lines; ``run`` shows it as faults in recipes
and rewards are shown. Help, exit codes and what commands raise are left as they are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # typer has no public name for it; once it was click's


def run(app: typer.Typer, arguments: Sequence[str], name: str, before: str = "") -> int:
    """Run a command line and return its exit code: 2, with one line on stderr, for one that cannot be understood.

    Args:
        name: of the program, as the line has it.
        before: what the line starts with.
    """
    try:
        code = app(list(arguments), prog_name=name, standalone_mode=False)
    except typer.Abort:  # Ctrl-C in older releases
        return 130
    except USAGE_ERROR as error:
        if type(error).__name__ != "NoArgsIsHelpError":
            print(before + _line(error), file=sys.stderr)
        elif str(error):  # the help of a group without a command, unless rich has printed it already
            print(error, file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


def _line(error: Any) -> str:
    place = error.ctx.command_path if error.ctx is not None else "command line"
    kind, message = type(error).__name__, " ".join(error.message.split())
    if kind == "NoSuchOption":
        known = _nearest(error.option_name, _options(error.ctx.command))
        return f"{place}: unknown option '{error.option_name}'; {known}"
    command = re.match(r"No such command '(.*?)'", message)
    if command is not None:
        return f"{place}: unknown command '{command[1]}'; {_nearest(command[1], error.ctx.command.commands)}"
    if getattr(error, "param", None) is None:
        return f"{place}: {message[:1].lower()}{message[1:].removesuffix('.')}"
    return f"{place}: {_name(error.param)}: {_missing(error) if kind == 'MissingParameter' else _wrong(error, message)}"


def _missing(error: Any) -> str:
    listed = error.param.get_missing_message(ctx=error.ctx) or ""  # "Choose from:\n\ta,\n\tb" of a choice
    choices = re.findall(r"[^\s,]+", listed.partition(":")[2])
    known = f"; {_nearest('', choices)}" if choices else ""
    return f"this {error.param.param_type_name} has to be given{known}"


def _wrong(error: Any, message: str) -> str:
    """What is wrong with the value of an option or argument."""
    message = message.removeprefix("Value error, ").replace("Input should be", "expected", 1)
    choice = re.match(r"'(.*)' is not one of (.*)", message)
    if choice is not None:
        found, choices = choice[1], re.findall(r"'([^']*)'", choice[2])
        return f"unknown name '{found}'; {_nearest(found, choices)}"
    details: list[Any] = getattr(error.__cause__, "errors", list)()  # of pydantic, which knows what was given
    return f"{message}, found '{details[0]['input']}'" if details else message


def _name(param: Any) -> str:
    """As it is given: --option, or the ARGUMENT of the usage."""
    if param.param_type_name == "option":
        return str(max(param.opts, key=len))
    return str(param.metavar or param.name.upper())


def _options(command: Any) -> list[str]:
    options = [option for param in command.params for option in (*param.opts, *param.secondary_opts)]
    return [option for option in (*options, "--help") if option.startswith("--")]


def _nearest(name: str, options: Iterable[str]) -> str:
    from mentor_rewards.contract import nearest  # imports pydantic and PIL, which --help can do without

    return nearest(name, options)
