"""One run of EmojiBench: sweeps, cells, rows, gallery.

Finished cells (checkpoint, split, seed, scale) are kept on disk, so an interrupted benchmark goes on where it stopped.

A name in the recipe may stand for several checkpoints: one method trained with several seeds. Each is measured at its
own best guidance and gets a row of its own ("after 1", "after 2"); the row of the name takes their pictures as further
sampling seeds, and that is the row to compare.

Shapes: I items, S sampling seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mentor_base.data.schema import Example, Prompt
from mentor_base.images import contact_sheet
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.progress import ProgressBar
from mentor_base.runlog import RunFolder
from mentor_base.settings import Split
from mentor_rl import gallery
from mentor_rl.evaluate import bootstrap
from mentor_rl.evaluate.cells import Cell, CellStore
from mentor_rl.evaluate.emojibench import (
    BENCHMARK,
    GALLERY_ITEMS,
    SWEEP_SPLIT,
    Measured,
    baseline_rows,
    bench_items,
    bench_policy,
    best_guidance,
    metrics_of,
    row_name,
    shapes_score,
)
from mentor_rl.evaluate.evaluator import Evaluator
from mentor_rl.evaluate.fingerprint import fingerprint
from mentor_rl.evaluate.paired import PRODUCT, change, pairs_of
from mentor_rl.evaluate.recipes import EmojiBenchRecipe
from mentor_rl.evaluate.result import Result, Value

COLUMNS = ("CP", "PF", "CP·PF", "style", "ground")


def evaluate(recipe: EmojiBenchRecipe, run: RunFolder) -> Result:
    """Run the benchmark of a recipe: results/emojibench.json, .md and the gallery emojibench.png in the run folder.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM; finished cells stay.
    """
    evaluator = Evaluator.load(recipe.evaluator)
    with InterruptGuard() as guard:
        bench = _Bench(recipe, run, evaluator, guard)
        try:
            result = bench.run()
        except Interrupted:
            raise Interrupted(f"{run.path}: stopped; the same command goes on from the finished parts") from None
    result.write(run.result_path(BENCHMARK))
    text = result.markdown() + changes_markdown(result)
    run.result_path(BENCHMARK).with_suffix(".md").write_text(text, encoding="utf-8")
    return result


def changes_markdown(result: Result) -> str:
    """Paired changes from the first policy to each other one, as shares, with intervals; empty for a single policy."""
    first, *others = result.details["policies"]
    if not others:
        return ""
    lines = ["", f"| change from {first} | items | CP | PF | CP·PF |", "|---|---|---|---|---|"]
    for name in others:
        for split, shares in relative_changes(result, first, name).items():
            lines.append(f"| {name} | {split} | {' | '.join(shares.values())} |")
    return "\n".join(lines) + "\n"


def relative_changes(result: Result, before: str, after: str) -> dict[str, dict[str, str]]:
    """Split -> metric -> the paired change as a share of ``before``, with its interval; "held out", the last of several
    splits, is all of them together.
    """
    out: dict[str, dict[str, str]] = {}
    for split, (first, second) in pairs_of(result, before, after).items():
        changes = {metric: change(first, second, metric) for metric in ("CP", "PF", PRODUCT)}
        out[split or "held out"] = {metric: _share(*found[1]) for metric, found in changes.items() if found is not None}
    return out


def _share(value: float, low: float, high: float) -> str:
    return f"{value:+.1%} [{low:+.1%}, {high:+.1%}]"


@dataclass(frozen=True)
class _Member:
    """A checkpoint on the bench; ``row`` is its own row's name."""

    row: str
    path: str
    with_baselines: bool


class _Bench:
    """One run of ``evaluate``: the rows gathered so far."""

    def __init__(self, recipe: EmojiBenchRecipe, run: RunFolder, evaluator: Evaluator, guard: InterruptGuard) -> None:
        self.recipe, self.folder, self.evaluator, self.guard = recipe, run, evaluator, guard
        self.items: dict[str, list[Example]] = {split: bench_items(split, recipe.items) for split in recipe.splits}
        self.measured: dict[str, dict[str, Measured]] = {split: {} for split in recipe.splits}
        self.shapes: dict[str, dict[str, np.ndarray]] = {split: {} for split in recipe.splits}
        self.scales: dict[str, float] = {}
        self.sweeps: dict[str, dict[str, dict[str, float]]] = {}
        self.members: dict[str, list[_Member]] = {}
        for name, given in recipe.policies.items():
            paths = (given,) if isinstance(given, str) else given
            rows = [name] if len(paths) == 1 else [f"{name} {number}" for number in range(1, len(paths) + 1)]
            first = recipe.baselines and not self.members
            self.members[name] = [_Member(r, p, first and r == rows[0]) for r, p in zip(rows, paths, strict=True)]

    def run(self) -> Result:
        with ProgressBar(BENCHMARK, self._pictures()) as bar:
            for name, members in self.members.items():
                for member in members:
                    self._policy(member, bar)
                if len(members) > 1:
                    self._join(name, members)
        if self.recipe.baselines and not self.members:
            self._baselines(None)
        for split in self.recipe.splits:
            self._gallery(split)
        return self._result()

    def _pictures(self) -> int:
        """How many pictures the policies draw in all."""
        each, policies = self.recipe.items, sum(map(len, self.members.values()))
        sweep = each * len(self.recipe.guidance) if len(self.recipe.guidance) > 1 else 0
        tests = each * len(self.recipe.splits) * (len(self.recipe.seeds) + 1)
        only_text = each * len(self.recipe.splits) * len(self.recipe.seeds) if self.recipe.baselines else 0
        return (sweep + tests) * policies + (only_text if policies else 0)

    def _policy(self, member: _Member, bar: ProgressBar) -> None:
        from mentor_base.checkpoint import load_policy

        model, processor = load_policy(member.path)
        identity = f"{fingerprint(member.path)}/{fingerprint(self.recipe.evaluator)}"
        store = CellStore(self.folder.path / "results" / "cells", identity, self.guard)
        common: dict[str, Any] = {
            "items": self.recipe.items,
            "temperature": self.recipe.temperature,
            "batch": self.recipe.batch,
        }
        shared: dict[str, Any] = {"name": member.row, "cells": store, "progress": bar, **common}
        scale = self._scale(member.row, model, processor, shared)
        for split in self.recipe.splits:
            at = {"split": split, "seeds": self.recipe.seeds, "guidance": scale, **shared}
            self.measured[split][member.row] = bench_policy(model, processor, self.evaluator, **at)
            self.shapes[split][member.row] = self._shapes(model, processor, split, scale, store, common)
            bar.advance(self.recipe.items, note=f"{member.row} {split} shapes")
            if member.with_baselines:
                blind = bench_policy(model, processor, self.evaluator, with_reference=False, **at)
                self.measured[split][f"text only ({member.row})"] = blind
        if member.with_baselines:
            self._baselines(model)

    def _scale(self, name: str, model: Any, processor: Any, shared: Mapping[str, Any]) -> float:
        """The policy's best guidance scale on the val split, one sampling seed."""
        scales = self.recipe.guidance
        if len(scales) > 1:
            at = {"split": SWEEP_SPLIT, "seeds": self.recipe.seeds[:1], **shared}
            sweep = {s: bench_policy(model, processor, self.evaluator, guidance=s, **at) for s in scales}
            self.sweeps[name] = {f"{s:g}": _point(measured) for s, measured in sweep.items()}
            self.scales[name] = best_guidance(sweep)
        else:
            self.scales[name] = scales[0]
        return self.scales[name]

    def _shapes(
        self,
        model: Any,
        processor: Any,
        split: str,
        scale: float,
        store: CellStore,
        common: Mapping[str, Any],
    ) -> np.ndarray:
        key = {"split": split, "task": "shapes", "scale": scale, **common}
        cell = store.get(key)
        if cell is None:
            scores = shapes_score(model, processor, split=split, seed=self.recipe.seeds[0], guidance=scale, **common)
            cell = Cell({"shapes": scores}, ())
            store.put(key, cell)
        store.check_interrupt()
        return cell.columns["shapes"]

    def _baselines(self, model: Any) -> None:
        for split, examples in self.items.items():
            self.measured[split] |= baseline_rows(examples, self.evaluator, model)

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
                    metrics[key]["shapes"] = bootstrap.estimate(shapes[~np.isnan(shapes), None], lambda m: m[..., 0])
                if name in self.scales:
                    metrics[key]["guidance"] = self.scales[name]
                per_item[key] = {
                    "item": [example.meta["where"] for example in self.items[split]],
                    **{column: table[:, i].round(5).tolist() for i, column in enumerate(COLUMNS)},
                }
        asked = self.recipe.items * len(self.recipe.splits)
        return Result(
            benchmark=BENCHMARK,
            metrics=metrics,
            per_item=per_item,
            coverage={"items": asked, "scored": sum(len(items) for items in self.items.values())},
            judge=f"{self.evaluator.name} {fingerprint(self.recipe.evaluator)}",
            seeds=self.recipe.seeds,
            details={
                "policies": list(self.recipe.policies),
                "splits": list(self.recipe.splits),
                "guidance": self.scales,
                "sweep": {"split": SWEEP_SPLIT, "policies": self.sweeps},
                "temperature": self.recipe.temperature,
            },
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
