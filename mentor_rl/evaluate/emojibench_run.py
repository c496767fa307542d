"""One run of EmojiBench: sweeps, cells, rows, gallery.

Parts are dealt out over the processes that torchrun started, and an interrupted benchmark goes on from those that are
finished (emojibench_parts.py).

A name in the recipe may stand for several checkpoints: one method trained with several seeds. Each is measured at its
own best guidance and gets a row of its own ("after 1", "after 2"); the row of the name takes their pictures as further
sampling seeds, and that is the row to compare.

Shapes: I items, S sampling seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mentor_base.checkpoint import load_tokenizer_of
from mentor_base.data.schema import Example, Prompt
from mentor_base.images import contact_sheet
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.runlog import RunFolder
from mentor_base.settings import Split
from mentor_rl import gallery
from mentor_rl.evaluate import bootstrap
from mentor_rl.evaluate.emojibench import (
    BENCHMARK,
    GALLERY_ITEMS,
    ITEM_SEED,
    SWEEP_SPLIT,
    Measured,
    Part,
    baseline_rows,
    bench_items,
    best_guidance,
    metrics_of,
    row_name,
)
from mentor_rl.evaluate.emojibench_parts import BenchParts
from mentor_rl.evaluate.evaluator import Evaluator
from mentor_rl.evaluate.fingerprint import fingerprint
from mentor_rl.evaluate.paired import PRODUCT, change, pairs_of
from mentor_rl.evaluate.processes import Processes
from mentor_rl.evaluate.recipes import EmojiBenchRecipe
from mentor_rl.evaluate.result import Result, Value

COLUMNS = ("CP", "PF", "CP·PF", "style", "ground")


def evaluate(recipe: EmojiBenchRecipe, run: RunFolder) -> Result | None:
    """Run the benchmark of a recipe: results/emojibench.json, .md and the gallery emojibench.png in the run folder.

    Returns:
        None in all processes but the first.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM; finished cells stay.
    """
    evaluator = Evaluator.load(recipe.evaluator)
    processes = Processes.join()
    with InterruptGuard() as guard:
        try:
            result = _Bench(recipe, run, evaluator, processes, guard).run()
        except Interrupted:
            raise Interrupted(f"{run.path}: stopped; the same command goes on from the finished parts") from None
    if result is None:
        return None
    result.write(run.result_path(BENCHMARK))
    text = result.markdown() + result.protocol() + changes_markdown(result)
    run.result_path(BENCHMARK).with_suffix(".md").write_text(text, encoding="utf-8")
    return result


def changes_markdown(result: Result) -> str:
    """Paired changes from the first policy to each other one, as shares, with intervals; empty without another one."""
    policies = result.details["policies"]
    if len(policies) < 2:
        return ""
    first, *others = policies
    lines = ["", f"| change from {first} | items | CP | PF | CP·PF |", "|---|---|---|---|---|"]
    for name in others:
        for split, shares in relative_changes(result, first, name).items():
            lines.append(f"| {name} | {split} | {' | '.join(shares.values())} |")
    return "\n".join(lines) + "\n"


def relative_changes(result: Result, before: str, after: str) -> dict[str, dict[str, str]]:
    """Split -> metric -> the paired change as a share of ``before``, with its interval; a dash where that is zero.

    "held out", the last of several splits, is all of them together.
    """
    out: dict[str, dict[str, str]] = {}
    for split, (first, second) in pairs_of(result, before, after).items():
        changes = {metric: change(first, second, metric) for metric in ("CP", "PF", PRODUCT)}
        out[split or "held out"] = {metric: _share(found) for metric, found in changes.items()}
    return out


def _share(changed: tuple[list[float], list[float]] | None) -> str:
    value, *bounds = changed[1] if changed is not None else [math.nan]
    if not math.isfinite(value):
        return "–"
    interval = f" [{bounds[0]:+.1%}, {bounds[1]:+.1%}]" if all(map(math.isfinite, bounds)) else ""
    return f"{value:+.1%}{interval}"


@dataclass(frozen=True)
class _Member:
    """A checkpoint on the bench; ``row`` is its own row's name."""

    row: str
    path: str
    with_baselines: bool


class _Bench:
    """One run of ``evaluate``: parts are dealt out, and the first process makes the tables of what all have drawn."""

    def __init__(
        self,
        recipe: EmojiBenchRecipe,
        run: RunFolder,
        evaluator: Evaluator,
        processes: Processes,
        guard: InterruptGuard,
    ) -> None:
        self.recipe, self.folder, self.evaluator, self.processes = recipe, run, evaluator, processes
        self.items: dict[str, list[Example]] = {split: bench_items(split, recipe.items) for split in recipe.splits}
        self.measured: dict[str, dict[str, Measured]] = {split: {} for split in recipe.splits}
        self.shapes: dict[str, dict[str, np.ndarray]] = {split: {} for split in recipe.splits}
        self.scales: dict[str, float] = {}
        self.sweeps: dict[str, dict[str, dict[str, float]]] = {}
        self.members: dict[str, list[_Member]] = {}
        for name in recipe.policies:
            first = recipe.baselines and not self.members
            rows = enumerate(recipe.rows_of(name).items())
            self.members[name] = [_Member(row, path, first and place == 0) for place, (row, path) in rows]
        checkpoints = {member.path for member in self._all_members()}
        self.parts = BenchParts(recipe, checkpoints, evaluator, run.path / "results" / "cells", processes, guard)

    def run(self) -> Result | None:
        """None in all processes but the first."""
        members = self._all_members()
        if len(self.recipe.guidance) > 1:
            self.parts.make("guidance", [(member.path, part) for member in members for part in self._sweep()])
        for member in members:
            self.scales[member.row] = self._scale(member)
        self.parts.make("policies", [(member.path, part) for member in members for part in self._tests(member)])
        if not self.processes.first:
            return None
        for name, several in self.members.items():
            for member in several:
                self._gather(member)
            if len(several) > 1:
                self._join(name, several)
        if self.recipe.baselines:
            self._baselines()
        for split in self.recipe.splits:
            self._gallery(split)
        return self._result()

    def _all_members(self) -> list[_Member]:
        return [member for several in self.members.values() for member in several]

    def _sweep(self) -> list[Part]:
        """Every scale, with one sampling seed."""
        return [Part("subject", SWEEP_SPLIT, self.recipe.seeds[0], scale) for scale in self.recipe.guidance]

    def _tests(self, member: _Member) -> list[Part]:
        """At the member's own scale: every split with every seed, and the shapes with one."""
        scale, parts = self.scales[member.row], []
        for split in self.recipe.splits:
            parts += self._asked("subject", split, scale)
            parts.append(self._of_shapes(split, scale))
            if member.with_baselines:
                parts += self._asked("text only", split, scale)
        return parts

    def _asked(self, asks: Literal["subject", "text only"], split: Split, scale: float) -> list[Part]:
        return [Part(asks, split, seed, scale) for seed in self.recipe.seeds]

    def _of_shapes(self, split: Split, scale: float) -> Part:
        return Part("shapes", split, self.recipe.seeds[0], scale)

    def _scale(self, member: _Member) -> float:
        """The policy's best guidance scale on the val split."""
        scales = self.recipe.guidance
        if len(scales) == 1:
            return scales[0]
        sweep = {part.guidance: self.parts.measured(member.path, [part]) for part in self._sweep()}
        self.sweeps[member.row] = {f"{scale:g}": _point(measured) for scale, measured in sweep.items()}
        return best_guidance(sweep)

    def _gather(self, member: _Member) -> None:
        path, scale = member.path, self.scales[member.row]
        for split in self.recipe.splits:
            rows = self.measured[split]
            rows[member.row] = self.parts.measured(path, self._asked("subject", split, scale))
            self.shapes[split][member.row] = self.parts.cell(path, self._of_shapes(split, scale)).columns["shapes"]
            if member.with_baselines:
                blind = self._asked("text only", split, scale)
                rows[f"text only ({member.row})"] = self.parts.measured(path, blind)

    def _baselines(self) -> None:
        """With the tokenizer of the first policy, where there is one."""
        first = next(iter(self._all_members()), None)
        tokenizer = None if first is None else load_tokenizer_of(first.path)
        for split, examples in self.items.items():
            self.measured[split] |= baseline_rows(examples, self.evaluator, tokenizer)

    def _join(self, name: str, members: list[_Member]) -> None:
        for split, rows in self.measured.items():
            rows[name] = Measured.joined([rows[member.row] for member in members])
            self.shapes[split][name] = np.mean([self.shapes[split][member.row] for member in members], axis=0)

    def _result(self) -> Result:
        metrics: dict[str, dict[str, Value]] = {}
        per_item: dict[str, dict[str, list[Any]]] = {}
        for split, rows in self.measured.items():
            for name, measured in rows.items():
                key, table = row_name(name, split), measured.table()
                metrics[key] = metrics_of(table)
                shapes = self.shapes[split].get(name)
                if shapes is not None:
                    told_I1 = shapes[~np.isnan(shapes), None]
                    metrics[key]["shapes"] = bootstrap.estimate(told_I1, lambda m: m[..., 0]) if len(told_I1) else None
                if name in self.scales:
                    metrics[key]["guidance"] = self.scales[name]
                per_item[key] = {
                    "item": [example.meta["where"] for example in self.items[split]],
                    **{column: table[:, i].round(5).tolist() for i, column in enumerate(COLUMNS)},
                }
        asked, members = self.recipe, self._all_members()
        pictures = asked.items * len(asked.splits) * len(asked.seeds) * len(members)
        scales = ", ".join(f"{scale:g}" for scale in asked.guidance)
        swept = f"guidance: each policy at the scale of {scales} with the best CP·PF on the {SWEEP_SPLIT} split"
        return Result(
            benchmark=BENCHMARK,
            metrics=metrics,
            per_item=per_item,
            coverage={"items": pictures, "scored": pictures},
            judge=f"{self.evaluator.name} {fingerprint(self.recipe.evaluator)}",
            seeds=self.recipe.seeds,
            details={
                "policies": list(self.recipe.policies),
                "splits": list(self.recipe.splits),
                "guidance": self.scales,
                "sweep": {"split": SWEEP_SPLIT, "policies": self.sweeps},
                "sampling": {"temperature": self.recipe.temperature},
            },
            checkpoints={member.row: f"{member.path} {fingerprint(member.path)}" for member in members},
            prompts=f"{asked.items} each of {', '.join(asked.splits)}; number {ITEM_SEED} of the emoji world",
            notes=(swept,) if self.sweeps else (),
        )

    def _gallery(self, split: Split) -> None:
        """One line per item: reference, true drawing, then a picture of each policy; the prompt below it."""
        examples = self.items[split][:GALLERY_ITEMS]
        drawn = [
            measured.pictures
            for name, measured in self.measured[split].items()
            if name in self.scales or name.startswith("text only")
        ]
        gallery.save_rows(self.folder.path / "results" / "pictures" / split, *self._shown(split))
        rows = [[e.images[0], e.target, *(pictures[i] for pictures in drawn)] for i, e in enumerate(examples)]
        first = split == self.recipe.splits[0]
        file = self.folder.result_path(BENCHMARK if first else f"{BENCHMARK}_{split}").with_suffix(".png")
        contact_sheet(rows, [example.prompt().plain_text for example in examples]).save(file)

    def _shown(self, split: Split) -> tuple[list[Prompt], dict[str, gallery.Row]]:
        """The gallery's prompts, and each policy's pictures of the first sampling seed with their scores."""
        prompts = [example.prompt() for example in self.items[split][:GALLERY_ITEMS]]
        rows: dict[str, gallery.Row] = {}
        for name, measured in self.measured[split].items():
            if name in self.scales:
                first = zip(measured.cp_IS[:, 0], measured.pf_IS[:, 0], strict=True)
                scores = [{"CP": round(float(cp), 5), "PF": round(float(pf), 5)} for cp, pf in first]
                rows[name] = measured.pictures, scores[: len(prompts)]
        return prompts, rows


def _point(measured: Measured) -> dict[str, float]:
    cp, pf = float(measured.cp_IS.mean()), float(measured.pf_IS.mean())
    return {"CP": round(cp, 5), "PF": round(pf, 5), "CP·PF": round(cp * pf, 5)}
