"""The parts of an EmojiBench on disk: dealt out over processes, drawn and scored once, and read by all.

What a part shows depends on the checkpoint, the part and the evaluator alone, so that one process and four make the
same tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mentor_base.checkpoint import load_policy
from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.progress import ProgressBar
from mentor_rl.evaluate.cells import Cell, CellStore
from mentor_rl.evaluate.emojibench import BENCHMARK, Measured, Part, draw_part
from mentor_rl.evaluate.evaluator import Evaluator
from mentor_rl.evaluate.fingerprint import fingerprint
from mentor_rl.evaluate.processes import Processes
from mentor_rl.evaluate.recipes import EmojiBenchRecipe


class BenchParts:
    """The parts of some checkpoints, by (path of the checkpoint, part).

    Args:
        folder: of the cells, which all processes see.
        guard: asked between two parts.
    """

    def __init__(
        self,
        recipe: EmojiBenchRecipe,
        checkpoints: Iterable[str],
        evaluator: Evaluator,
        folder: Path,
        processes: Processes,
        guard: InterruptGuard,
    ) -> None:
        self.evaluator, self.folder, self.processes, self.guard = evaluator, folder, processes, guard
        self.device, self.items = processes.device(recipe.device), recipe.items
        self.drawing: dict[str, Any] = {"items": recipe.items, "temperature": recipe.temperature, "batch": recipe.batch}
        judge = fingerprint(recipe.evaluator)
        self.cells = {path: CellStore(folder, f"{fingerprint(path)}/{judge}") for path in checkpoints}

    def make(self, label: str, work: Iterable[tuple[str, Part]]) -> None:
        """Draw and score this process's share of what has no cell yet, and wait for the other processes.

        Raises:
            Interrupted: between two parts; what is drawn stays.
        """
        mine = self.processes.share(list(dict.fromkeys(work)))  # a checkpoint may stand under two names
        left = [(path, part) for path, part in mine if not self.cells[path].has(self._key(part))]
        held, policy = "", None
        with ProgressBar(f"{BENCHMARK}: {label}", len(left) * self.items, quiet=not self.processes.first) as bar:
            for path, part in left:
                if policy is None or held != path:
                    model, processor = load_policy(path)
                    held, policy = path, (model.to(self.device), processor)
                self.cells[path].put(self._key(part), draw_part(*policy, self.evaluator, part, **self.drawing))
                bar.advance(self.items, note=f"{path}: {part.asks}, {part.split}, guidance {part.guidance:g}")
                if self.guard.requested:
                    raise Interrupted("stopped between two parts")
        self.processes.wait()

    def measured(self, path: str, parts: Sequence[Part]) -> Measured:
        """One row of the benchmark: parts that differ in their seed."""
        return Measured.of([self.cell(path, part) for part in parts])

    def cell(self, path: str, part: Part) -> Cell:
        """A part that some process has made.

        Raises:
            UserError: it is not there.
        """
        cell = self.cells[path].get(self._key(part))
        if cell is None:
            raise UserError(f"{self.folder}: expected the scores of {path}, {part}; do all processes see this folder?")
        return cell

    def _key(self, part: Part) -> dict[str, Any]:
        return {**asdict(part), **self.drawing}
