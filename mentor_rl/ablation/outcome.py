"""What an ablation found: RUN/results/ablation.json, and the same as Markdown. Free of torch and numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mentor_base.errors import UserError
from mentor_base.runlog import write_atomically
from mentor_rl.evaluate.published import PublishedTable, published_tables, shown
from mentor_rl.evaluate.result import finite, number

BENCHMARK, REWARDS = "benchmark", "rewards"
TITLES = {BENCHMARK: "Benchmark", REWARDS: "Rewards on the fixed prompts, last step"}
DREAMBENCH_PLUS, PICTURES = "dreambench_plus", 1350  # what the paper's ablations were measured with
HIDDEN = ("stand_in", "published")  # facts that are told in other words
WITHIN_NOISE = "within noise"


@dataclass(frozen=True)
class Cell:
    """One metric of one arm.

    Attributes:
        value: mean over training seeds.
        per_seed: seed -> value.
        interval: 95 % of ``value``: Student's over seeds, with one seed the bootstrap's over items; None: unknown.
        change: [value, low, high] against the reference, paired over items, seeds averaged first.
        relative: the same as a share of the reference.
        over_seeds: [value, low, high] of the change, Student's over seeds, paired by seed (of what is not tuned: over
            the reference's seeds); None for fewer than two.
        verdict: evaluate/paired.py; "" for the reference itself.
    """

    value: float
    per_seed: dict[str, float]
    interval: list[float] | None = None
    change: list[float] | None = None
    relative: list[float] | None = None
    over_seeds: list[float] | None = None
    verdict: str = ""

    @property
    def beyond_noise(self) -> bool:
        return self.verdict in ("up", "down")


@dataclass(frozen=True)
class ArmOutcome:
    """One arm.

    Attributes:
        changes: step.key -> value.
        trained: the rewards it trained on.
        seeds: those whose benchmark is finished.
        panels: panel -> metric -> cell.
        tuned: seed -> run folder of the last stage, below the ablation's, of those that are finished.
        measured: the same of the benchmark.
    """

    changes: dict[str, Any]
    trained: tuple[str, ...]
    seeds: tuple[int, ...]
    panels: dict[str, dict[str, Cell]]
    tuned: dict[str, str] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """All arms of an ablation, in the order of its recipe.

    Attributes:
        missing: runs that are not finished, e.g. "without_style/seed2/benchmark".
        facts: benchmark, judge, stand_in, items, sampling seeds, and so on.
    """

    name: str
    about: str
    reference: str
    seeds: tuple[int, ...]
    arms: dict[str, ArmOutcome]
    missing: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(finite(asdict(self)), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """
        Raises:
            UserError: no such file, or one that `mentor ablate` has not written.
        """
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            arms = {name: _arm(arm) for name, arm in held["arms"].items()}
            known = {f.name: held[f.name] for f in fields(cls)}
        except FileNotFoundError:
            raise UserError(f"{path}: expected the result of an ablation, found no such file") from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: expected the result of an ablation, found another file ({error})") from error
        return cls(**{**known, "arms": arms, "seeds": tuple(held["seeds"]), "missing": tuple(held["missing"])})

    def metrics(self, panel: str) -> list[str]:
        """All metrics of a panel, in the order of their first appearance."""
        return list(dict.fromkeys(name for arm in self.arms.values() for name in arm.panels.get(panel, ())))

    def panels(self) -> list[str]:
        """The panels that have anything to show."""
        return [panel for panel in TITLES if self.metrics(panel)]

    def markdown(self) -> str:
        """Values, then paired changes from the reference, per panel."""
        parts = [f"# {self.name}\n", f"{self.about}\n" if self.about else "", f"{self.caption()}\n"]
        for panel in self.panels():
            parts += [
                f"## {TITLES[panel]}\n",
                self._values(panel),
                f"Change from `{self.reference}`:\n",
                self._changes(panel),
            ]
        parts.append(self.published_markdown())
        if self.missing:
            parts.append(f"Not finished: {', '.join(self.missing)}.\n")
        return "\n".join(part for part in parts if part)

    def caption(self) -> str:
        """How the numbers were taken, and how they are to be read."""
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        told = self.measured()
        several = "Student's t over seeds, for an arm with a single one the bootstrap over items"
        spread = several if len(self.seeds) > 1 else "bootstrap over items"
        return (
            f"{seeds[0].upper()}{seeds[1:]}; {told}. Intervals of values: 95 %, {spread}. Changes are paired: [ ] over "
            "items (bootstrap, seeds averaged first), then ( ) over seeds. A change is up or down where every interval "
            f"that there is leaves zero out, and {WITHIN_NOISE} where that over items does not. Of 20 changes that are "
            "none, one will be taken for one."
        )

    def measured(self) -> str:
        """With what, by whom, on how much."""
        told = {key: value for key, value in self.facts.items() if key not in HIDDEN and value not in (None, "")}
        marks = {"judge": " (a stand-in: not comparable with published numbers)"} if self.facts.get("stand_in") else {}
        return "; ".join(f"{key}{marks.get(key, '')}: {value}" for key, value in told.items())

    def published_rows(self) -> tuple[PublishedTable, list[tuple[str, list[str]]]] | None:
        """The paper's table that the recipe names and all rows under its columns, ours last; None: no table is named.

        Raises:
            UserError: ours were measured otherwise, or are not finished.
        """
        if self.facts.get("published") is None:
            return None
        table, measured = published_tables()[self.facts["published"]], self.facts.get("benchmark")
        whole = self.facts.get("pictures") == PICTURES * len(self.facts.get("sampling seeds", "").split(","))
        reasons = {
            f"measured by {measured}, theirs by {DREAMBENCH_PLUS}": measured != DREAMBENCH_PLUS,
            f"judged by a stand-in ({self.facts.get('judge')})": self.facts.get("stand_in"),
            f"not all {PICTURES} items were measured": not whole,
            "not all pictures were scored": self.facts.get("pictures without a score"),
            "not all runs are finished": self.missing,
        }
        if why := next((reason for reason, holds in reasons.items() if holds), None):
            raise UserError(f"Published numbers are left out: {why}.")
        rows = [(name, [*map(shown, values)]) for name, values in table.rows.items()]
        for name, arm in self.arms.items():
            cells = arm.panels.get(BENCHMARK, {})
            rows.append((f"{name} (ours)", [shown_value(cells.get(column)) for column in table.columns]))
        return table, rows

    def published_markdown(self) -> str:
        """The paper's table with our arms beneath, or why it is left out."""
        try:
            beside = self.published_rows()
        except UserError as error:
            return f"{error}\n"
        if beside is None:
            return ""
        table, rows = beside
        lines = [f"| MENTOR, table {table.number}: {table.title} | {' | '.join(table.columns)} |"]
        lines.append("|---" * (len(table.columns) + 1) + "|")
        lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]
        return "\n".join(lines) + f"\n\n{table.footnote.strip()} Published: {table.source}.\n"

    def _values(self, panel: str) -> str:
        names = self.metrics(panel)
        lines = [f"| arm | seeds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        for name, arm in self.arms.items():
            cells = arm.panels.get(panel, {})
            shown = (shown_value(cells.get(metric), metric in arm.trained and panel == REWARDS) for metric in names)
            lines.append(f"| {name} | {len(arm.seeds)} | {' | '.join(shown)} |")
        note = "Bold: rewards that the arm was trained on; the others are held out.\n" if panel == REWARDS else ""
        return "\n".join(lines) + f"\n\n{note}"

    def _changes(self, panel: str) -> str:
        names = self.metrics(panel)
        lines = [f"| arm | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for name, arm in self.arms.items():
            if name != self.reference:
                cells = arm.panels.get(panel, {})
                lines.append(f"| {name} | {' | '.join(shown_change(cells.get(metric)) for metric in names)} |")
        return "\n".join(lines) + "\n"


def shown_value(cell: Cell | None, bold: bool = False) -> str:
    """A value with its interval."""
    if cell is None:
        return ""
    text = number(cell.value)
    text = f"**{text}**" if bold else text
    return text if cell.interval is None else f"{text} [{number(cell.interval[0])}, {number(cell.interval[1])}]"


def shown_change(cell: Cell | None) -> str:
    """A change with its intervals and the verdict."""
    if not (lines := change_lines(cell)):
        return ""
    value, verdict = lines[0].split(" ", 1)
    return " ".join([value, *lines[1:], verdict])


def change_lines(cell: Cell | None) -> list[str]:
    """The change with the verdict, then each interval; nothing where there is no change."""
    if cell is None or cell.change is None:
        return []
    value, *bounds = map(_signed, cell.change)
    lines = [f"{value} {cell.verdict}", f"[{', '.join(bounds)}]"]
    if cell.over_seeds is not None:
        lines.append(f"({', '.join(map(_signed, cell.over_seeds[1:]))})")
    return lines


def _signed(value: float | None) -> str:
    """With its sign; a dash for a bound that does not exist (JSON's null)."""
    return "–" if value is None or not math.isfinite(value) else f"{value:+.3f}"


def _arm(held: Mapping[str, Any]) -> ArmOutcome:
    panels = {panel: {name: Cell(**cell) for name, cell in cells.items()} for panel, cells in held["panels"].items()}
    told = {key: held[key] for key in ("changes", "tuned", "measured")}
    return ArmOutcome(trained=tuple(held["trained"]), seeds=tuple(held["seeds"]), panels=panels, **told)
