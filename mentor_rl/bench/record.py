"""What a benchmark leaves: a JSON file with everything, and rows of a Markdown table made from such files."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mentor_base.errors import UserError

FIELDS = ("bench", "command", "date", "machine", "versions", "settings", "numbers")
Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        bench: rollout, grpo, sft or load.
        settings: what was asked for.
        numbers: what was found, in seconds, bytes and plain ratios; repeated ones as median, low, high, runs.
    """

    bench: str
    command: str
    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    numbers: dict[str, Any]

    @classmethod
    def of(
        cls, bench: str, machine: dict[str, Any], versions: dict[str, str], settings: Numbers, numbers: Numbers
    ) -> Record:
        """A record of now and of the command line that is running, without the option that names its file."""
        date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return cls(bench, _command(sys.argv[1:]), date, machine, versions, dict(settings), dict(numbers))

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Record:
        """Raises: UserError, when the file is not one of ours."""
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{file}: expected a record of `mentor bench`, found no JSON: {error}") from error
        if not isinstance(facts, dict) or set(facts) != set(FIELDS) or facts["bench"] not in COLUMNS:
            found = ", ".join(facts) if isinstance(facts, dict) else type(facts).__name__
            raise UserError(f"{file}: expected a record of `mentor bench` ({', '.join(FIELDS)}), found {found}")
        return cls(**facts)


def table(records: list[Record]) -> str:
    """Records of one benchmark as a Markdown table."""
    columns = COLUMNS[records[0].bench]
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(cell(record) for cell in columns.values()) for record in records]
    return "".join(f"| {line} |\n" for line in lines)


def page(records: list[Record]) -> str:
    """All records, by machine and benchmark, each with the command that made it."""
    parts = []
    for machine in dict.fromkeys(_machine(record) for record in records):
        parts.append(f"## {machine}\n")
        for bench in COLUMNS:
            rows = [record for record in records if record.bench == bench and _machine(record) == machine]
            if rows:
                commands = "".join(f"{record.command}    # {record.date}\n" for record in rows)
                parts.append(f"### {bench}\n\n{NOTES[bench]}\n\n{table(rows)}\n```\n{commands}```\n")
    return "\n".join(parts)


def _command(arguments: list[str]) -> str:
    kept = [argument for argument in arguments if not argument.startswith("--out=")]
    if "--out" in kept:
        place = kept.index("--out")
        del kept[place : place + 2]
    return shlex.join(["mentor", *kept])


def _machine(record: Record) -> str:
    facts, names = record.machine, record.versions
    place = facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores"
    return f"{place}; torch {names['torch']}, Python {names['python']}"


# ---- cells -------------------------------------------------------------------------------------------------------


def _seconds(key: str) -> Callable[[Record], str]:
    return lambda record: _spread(_at(record.numbers, key), 1.0)


def _setting(key: str) -> Callable[[Record], str]:
    return lambda record: str(record.settings[key])


def _number(key: str, scale: float = 1.0, form: str = ".3g") -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        value = _at(record.numbers, key)
        return "" if value is None else format(value * scale, form)

    return cell


def _at(numbers: Numbers, key: str) -> Any:
    value: Any = numbers
    for part in key.split("."):
        value = None if value is None else value.get(part)
    return value


def _spread(value: Any, scale: float) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        middle, low, high = (value[name] * scale for name in ("median", "low", "high"))
        return f"{middle:.3g} ({low:.3g} to {high:.3g}, {value['runs']} runs)"
    return format(value * scale, ".3g")


def _greedy(record: Record) -> str:
    found = record.numbers.get("greedy")
    if found is None:
        return ""
    share = f"{found['pictures_equal']} of {found['pictures']} pictures over {found['tokens']} tokens"
    margin = found["largest_margin"]
    return share if margin is None else f"{share}; the others part at margins of at most {margin:.2g}"


def _phases(key: str = "phases") -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        return ", ".join(f"{name} {seconds:.3g}" for name, seconds in (_at(record.numbers, key) or {}).items())

    return cell


def _shape(record: Record) -> str:
    found = record.settings
    return f"{found['prompts']} x {found['batch'] // found['prompts']}, {found['prefix']} + {found['tokens']}"


def _grpo_shape(record: Record) -> str:
    shape = f"{record.numbers['reference_slots']} + {record.numbers['tokens']}"
    padded_to = record.settings.get("padded_to")
    return shape if padded_to is None else f"{shape}, prompts there padded to {padded_to}"


COLUMNS: dict[str, dict[str, Callable[[Record], str]]] = {
    "rollout": {
        "size": _setting("size"),
        "dtype": _setting("dtype"),
        "prompts x group, prefix + tokens": _shape,
        "guidance": _setting("guidance"),
        "engine": _setting("engine"),
        "s": _seconds("ours.seconds"),
        "tokens/s": _number("ours.tokens_per_s", form=".4g"),
        "images/s": _number("ours.images_per_s"),
        "peak MB": _number("ours.peak_bytes", 1e-6, ".0f"),
        "reference s": _seconds("reference.seconds"),
        "reference peak MB": _number("reference.peak_bytes", 1e-6, ".0f"),
        "**ratio**": _seconds("ratio"),
        "equal greedy ids": _greedy,
        "share of copy bandwidth": _number("bandwidth_share"),
    },
    "grpo": {
        "size": _setting("size"),
        "pictures a step": _number("pictures", form=".0f"),
        "reference slots + tokens": _grpo_shape,
        "s a step": _seconds("seconds"),
        "seconds by phase": _phases(),
        "pictures/s": _number("pictures_per_s"),
        "peak MB": _number("peak_bytes", 1e-6, ".0f"),
        "AR-GRPO's way: s a step": _seconds("against.seconds"),
        "by phase": _phases("against.phases"),
        "its peak MB": _number("against.peak_bytes", 1e-6, ".0f"),
        "**ratio** of seconds": _seconds("ratio"),
        "of peaks": _number("peak_ratio"),
    },
    "sft": {
        "size": _setting("size"),
        "dtype": _setting("dtype"),
        "batch": _setting("batch"),
        "parameters, millions": _number("parameters", 1e-6, ".4g"),
        "s a step": _seconds("seconds"),
        "seconds by phase": _phases(),
        "tokens/s": _number("tokens_per_s", form=".4g"),
        "TFLOP a step": _number("flops", 1e-12),
        "TFLOP/s of a large product": _number("product_rate", 1e-12),
        "MFU": _number("mfu"),
        "peak MB": _number("peak_bytes", 1e-6, ".0f"),
    },
    "load": {
        "source": _setting("source"),
        "checkpoint MB": _number("checkpoint_bytes", 1e-6, ".0f"),
        "import s": _seconds("import.seconds"),
        "import peak / size": _number("import.peak_share"),
        "load s": _seconds("load.seconds"),
        "load peak / size": _number("load.peak_share"),
    },
}
NOTES = {
    "rollout": (
        "Seconds of a whole rollout: prefill and all tokens. The reference is its way of working re-created "
        "(`mentor_rl/bench/reference_sampler.py`) on the same weights in the same process and dtype, the two taking "
        "turns. Where fewer tokens were timed than drawn, they lie in the middles of four equal parts of the picture, "
        "and each part counts as its middle does; `timed` in the JSON says how many. Random weights; greedy."
    ),
    "grpo": (
        "Steps of the real trainer on a shipped recipe, the first left out; seconds as it logs them. AR-GRPO's way of "
        "working is re-created (`mentor_rl/bench/ar_grpo_step.py`) on the same weights, prompts, rewards and random "
        "numbers in the same process, the two taking turns; peaks are what a step adds to memory."
    ),
    "sft": "Forward, backward and AdamW, one picture prompt per sample, random weights; `MFU` is of the product rate.",
    "load": (
        "`mentor import` of a checkpoint with random weights and loading of its result, each in a process of its own; "
        "peaks are resident memory beyond the imports of the process, over the size of the file that is read."
    ),
}
