"""What every benchmark returns: numbers with intervals, the items behind them, and who judged. Free of torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mentor_base.errors import UserError, nearest
from mentor_base.runlog import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

PART = " · "  # between a row's name and the name of its part
OTHER_FILES = ("ablation",)  # beside results, and no benchmark's
Value = float | int | str | None | list[float]  # a list is [mean, low, high]


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome.

    Attributes:
        benchmark: its name.
        metrics: row -> metric -> a number, or [mean, low, high] with the 95 % interval over items.
        per_item: row -> column -> one entry per item, e.g. {"after": {"item": [...], "CP": [...], "PF": [...]}}.
        coverage: how many pictures were asked for (``items``), and how many were scored (``scored``).
        judge: what scored the pictures, with a checksum where it is a checkpoint.
        stand_in: True where a judge stands in for the published one, so that numbers are not comparable with papers.
        seeds: sampling seeds behind each row of a policy.
        details: anything else worth keeping: ``sampling`` (name -> number) of the policies, the guidance sweep.
        checkpoints: row -> the checkpoint that drew its pictures, with a checksum, or the folder they were given in.
        prompts: where the items come from.
        notes: footnotes: how the protocol differs from the published one.
    """

    benchmark: str
    metrics: dict[str, dict[str, Value]]
    per_item: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    coverage: dict[str, float] = field(default_factory=dict)
    judge: str = ""
    stand_in: bool = False
    seeds: tuple[int, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    prompts: str = ""
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all; numbers that are not finite become null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(finite(asdict(self)), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """
        Raises:
            UserError: no such file, not JSON, an unknown or a missing key, a table of another form.
        """
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: expected a benchmark result, found no such file") from None
        except IsADirectoryError:
            raise UserError(f"{path}: expected a benchmark result, found a folder") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: expected a benchmark result, found no valid JSON: {error}") from error
        if not isinstance(facts, dict):
            raise UserError(f"{path}: expected a benchmark result, found a {type(facts).__name__}")
        known = [f.name for f in fields(cls)]
        for key in facts:
            if key not in known:
                raise UserError(f"{path}: unknown key '{key}'; {nearest(key, known)}")
        for key in ("benchmark", "metrics"):
            if key not in facts:
                raise UserError(f"{path}: expected the key '{key}', found {', '.join(facts) or 'none'}")
        _check_tables(facts, str(path))
        lists = {key: tuple(facts.get(key, ())) for key in ("seeds", "notes")}
        return cls(**{**facts, **lists})

    def columns(self) -> list[str]:
        """All metrics, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.metrics.values() for name in row))

    def markdown(self) -> str:
        """The table for a README or a card."""
        columns = self.columns()
        lines = [f"| {self.benchmark} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name, row in self.metrics.items():
            lines.append(f"| {name} | {' | '.join(cell(row.get(column)) for column in columns)} |")
        return "\n".join(lines) + "\n"

    def protocol(self) -> str:
        """What was measured, with what, on what: the lines below a table in Markdown."""
        lines = [f"- judge{' (a stand-in)' * self.stand_in}: {self.judge}", f"- prompts: {self.prompts}"]
        lines += [f"- {row}: {source}" for row, source in self.checkpoints.items()]
        sampling = ", ".join(f"{name} {value:g}" for name, value in self.details["sampling"].items())
        lines += [f"- seeds: {', '.join(map(str, self.seeds))}; sampling of policies: {sampling}"]
        lines += [f"- scored: {self.coverage['scored']:g} of {self.coverage['items']:g} pictures"]
        lines += [f"- {note}" for note in self.notes]
        return "\n" + "\n".join(lines) + "\n"

    def table(self) -> Table:
        """The table for a terminal: values alone, so that it fits; the intervals are in the JSON and the Markdown.

        Parts of a row stand below it, indented; a part without a whole, as a split, stands above its rows.
        """
        from rich.markup import escape
        from rich.table import Table

        shown = Table(title=self.benchmark, caption=escape(self.caption()), caption_justify="left", box=None,
                      padding=(0, 1, 0, 0), header_style="bold", min_width=72)  # fmt: skip
        shown.add_column("", max_width=32)
        for column in self.columns():
            shown.add_column(column, justify="right")
        head = ""
        for name, row in self.metrics.items():
            whole, _, part = name.partition(PART)
            alone = bool(part) and whole not in self.metrics
            if alone and part != head:
                head = part
                shown.add_row(f"[bold]{escape(part)}[/bold]")
            label = f"  {whole if alone else part}" if part else name
            shown.add_row(escape(label), *(cell(row.get(column)).split(" [")[0] for column in self.columns()))
        return shown

    def caption(self) -> str:
        """Who judged, and how much: what a number must not be read without."""
        lines = [f"judge{' (a stand-in: not comparable with published numbers)' * self.stand_in}: {self.judge}"]
        asked, scored = self.coverage.get("items"), self.coverage.get("scored")
        if asked is not None and scored is not None and scored != asked:
            lines.append(f"scored: {scored:g} of {asked:g} pictures; the others are left out")
        lines += [note for note in self.notes if "(limit)" in note]
        return "\n".join([*lines, f"seeds: {', '.join(map(str, self.seeds))}; intervals: see the results folder"])


def result_files(folder: Path) -> list[Path]:
    """The benchmark results that a run, or an exported checkpoint, holds."""
    return [file for file in sorted((folder / "results").glob("*.json")) if file.stem not in OTHER_FILES]


def result_file(path: Path) -> Path:
    """A result's file: ``path`` itself, or the only one that a folder holds.

    Raises:
        UserError: a folder without results, or with several.
    """
    if not path.is_dir():
        return path
    found = result_files(path)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{path}: expected one benchmark result in {path / 'results'}, found {names}; name the file")
    return found[0]


def cell(value: Value) -> str:
    """One number, with its interval where it has one."""
    if value is None:
        return ""
    if isinstance(value, list):
        mean, low, high = value
        return f"{number(mean)} [{number(low)}, {number(high)}]"
    return number(value) if isinstance(value, float) else str(value)


def number(value: float | None) -> str:
    """Three decimals; a dash for what does not exist."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _check_tables(facts: Mapping[str, Any], where: str) -> None:
    """Refuse ``metrics`` and ``per_item`` of another form than the one that is written."""
    for key, fits, form in (
        ("metrics", _is_value, "a number, a word or [mean, low, high]"),
        ("per_item", lambda column: isinstance(column, list), "a list"),
    ):
        rows = facts.get(key, {})
        if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
            raise UserError(f"{where}: {key}: expected row -> name -> {form}, found another form")
        for name, row in rows.items():
            for column, value in row.items():
                if not fits(value):
                    raise UserError(f"{where}: {key}.{name}.{column}: expected {form}, found {value!r:.60}")
    for name, row in facts.get("per_item", {}).items():
        if len(lengths := {len(column) for column in row.values()}) > 1:
            raise UserError(f"{where}: per_item.{name}: expected columns of one length, found {sorted(lengths)}")


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 3 and all(each is None or isinstance(each, (int, float)) for each in value)
    return value is None or isinstance(value, (int, float, str))


def finite(value: Any) -> Any:
    """The same with null in the place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
