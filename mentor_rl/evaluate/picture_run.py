"""One run of a benchmark on pictures: draw what is missing, score what is new, make the table and the gallery.

RUN/pictures/<policy>/<item id>_<seed>.png    and policy.json: which weights drew them
RUN/scores/<row>/                             score_store.py
RUN/results/<benchmark>.json, .md, .png       picture_result.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.progress import ProgressBar
from mentor_base.runlog import RunFolder, write_atomically
from mentor_rl.evaluate.benchmark import Benchmark, Item, PictureKey, Sample
from mentor_rl.evaluate.drawing import draw_missing
from mentor_rl.evaluate.fingerprint import fingerprint
from mentor_rl.evaluate.picture_folder import SIGNATURE, PictureFolder
from mentor_rl.evaluate.picture_result import Row, gather, make_result, write_result
from mentor_rl.evaluate.processes import Processes
from mentor_rl.evaluate.recipes import PictureRecipe
from mentor_rl.evaluate.result import Result
from mentor_rl.evaluate.score_store import ScoreStore, picture_fingerprint

BUILDERS = {
    "dreambench_plus": "mentor_rl.evaluate.dreambench_plus:DreamBenchPlus",
    "dreambench": "mentor_rl.evaluate.dreambench:DreamBench",
    "t2i_rewards": "mentor_rl.evaluate.t2i_rewards:T2IRewards",
    "geneval": "mentor_rl.evaluate.geneval_bench:GenEval",
    "reconstruction": "mentor_rl.evaluate.reconstruction_bench:Reconstruction",
    "ade20k": "mentor_rl.evaluate.ade20k_bench:Ade20k",
    "fid": "mentor_rl.evaluate.fid_bench:Fid",
}


def run_benchmark(recipe: PictureRecipe, benchmark: Benchmark, run: RunFolder) -> Result | None:
    """Run the benchmark of a recipe; None in all processes but the first.

    Raises:
        UserError: data, checkpoints or pictures that cannot be used.
        Interrupted: after Ctrl-C or SIGTERM; pictures and scores stay.
    """
    processes = Processes.join()
    with InterruptGuard() as guard:
        try:
            return _Run(recipe, run, benchmark, processes, guard).run()
        except Interrupted:
            raise Interrupted(f"{run.path}: stopped; the same command goes on from the finished parts") from None


def check_policies(paths: Iterable[str]) -> None:
    """Refuse what is no policy, before another one has drawn for hours.

    Raises:
        UserError: no model there, or one of another kind.
    """
    from mentor_base.checkpoint import check_config, model_folder
    from mentor_base.config import MentorConfig

    for path in paths:
        check_config(model_folder(path), MentorConfig.model_type)


def build_benchmark(recipe: PictureRecipe) -> Benchmark:
    """The benchmark that a recipe names.

    Raises:
        UserError: its data are not there.
    """
    module, name = BUILDERS[recipe.benchmark].split(":")
    built: Benchmark = getattr(import_module(module), name)(recipe)
    return built


class _Run:
    """The parts of ``run_benchmark``, in order."""

    def __init__(
        self,
        recipe: PictureRecipe,
        run: RunFolder,
        benchmark: Benchmark,
        processes: Processes,
        guard: InterruptGuard,
    ) -> None:
        self.recipe, self.folder, self.benchmark, self.processes, self.guard = recipe, run, benchmark, processes, guard
        self.device = processes.device(recipe.device)
        self.all_items = tuple(benchmark.items())
        self.items = self.all_items[: recipe.limit]
        self.questions = _digest(self.all_items)

    def run(self) -> Result | None:
        given = [self._given(name, path) for name, path in self.recipe.images.items()]  # faults show before the work
        drawn = [self._signed(name, path) for name, path in self.recipe.policies.items()]
        for row, path in zip(drawn, self.recipe.policies.values(), strict=True):
            self._draw(row, path)
        self.processes.wait()
        rows = [*drawn, *given]
        self.benchmark.load(self.device)
        try:
            stores = self._score(rows)
            self.processes.wait()
            return self._finish(rows, stores) if self.processes.first else None
        finally:
            self.benchmark.unload()

    def _signed(self, name: str, path: str) -> Row:
        """A policy, and the folder that its pictures alone go into."""
        folder = PictureFolder.of(self.folder.path / "pictures" / name, self.items, self.recipe.seeds)
        source = f"{path} {fingerprint(path)}"
        self._sign(folder.folder, source)
        return Row(name, folder, source, {})

    def _draw(self, row: Row, path: str) -> None:
        """Those pictures of a policy that are missing."""
        draw_missing(
            self._policy_loader(path),
            self.items,
            self.recipe.seeds,
            row.folder,
            sampling=self.recipe.sampling,
            batch=self.recipe.batch,
            processes=self.processes,
            guard=self.guard,
            label=row.name,
        )

    def _policy_loader(self, path: str) -> Callable[[], tuple[Any, Any]]:
        def load() -> tuple[Any, Any]:
            from mentor_base.callbacks import hide_bars
            from mentor_base.checkpoint import load_policy

            hide_bars()
            model, processor = load_policy(path, self.recipe.dtype)
            return model.to(self.device), processor

        return load

    def _sign(self, folder: Path, source: str) -> None:
        """Keep pictures of different weights apart."""
        file = folder / SIGNATURE
        if self.processes.first and not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps({"policy": source, "items": self.questions}) + "\n")
        self.processes.wait()
        held = json.loads(file.read_text(encoding="utf-8"))
        if held["policy"].split()[-1] != source.split()[-1]:
            drawn_by = held["policy"]
            raise UserError(f"{folder}: these pictures were drawn by {drawn_by}, found {source} now; delete the folder")
        if held["items"] != self.questions:
            raise UserError(
                f"{folder}: these pictures were drawn for other prompts than are asked now; delete the folder"
            )

    def _given(self, name: str, path: str) -> Row:
        """A folder of pictures that somebody else has drawn.

        Raises:
            UserError: missing, extra or unreadable pictures, unless the recipe has ``incomplete: score``.
        """
        folder = PictureFolder.of(path, self.items, self.recipe.seeds)
        faults = folder.check({f"{item.id}_{seed}" for item in self.all_items for seed in self.recipe.seeds})
        if faults and self.recipe.incomplete == "refuse":
            example = f"{self.items[0].id}_{self.recipe.seeds[0]}.png"
            raise UserError(
                "\n".join([*faults.lines(), f"images.{name}: expected {len(folder.keys)} pictures such as {example}; "
                           "nothing was scored (incomplete: score scores what is there)"])
            )  # fmt: skip
        return Row(name, folder, str(path), faults.broken)

    def _score(self, rows: Sequence[Row]) -> dict[str, ScoreStore]:
        """Score this process's share of the pictures that have no facts yet."""
        stores = {row.name: self._store(row.name) for row in rows}
        by_id = {item.id: item for item in self.items}
        work: list[tuple[Row, list[PictureKey]]] = []
        for row in rows:
            stores[row.name].read()
            absent = {*row.folder.missing(), *row.broken}
            keys = [key for key in row.folder.keys if key not in absent]
            size = self.recipe.score_batch
            parts = self.processes.share([keys[i : i + size] for i in range(0, len(keys), size)])
            work += [(row, part) for part in parts]
        total = sum(len(part) for _, part in work)
        with ProgressBar(f"{self.benchmark.name}: scoring", total, quiet=not self.processes.first) as bar:
            for row, part in work:
                self._score_part(row, part, by_id, stores[row.name])
                bar.advance(len(part), note=row.name)
                if self.guard.requested:
                    raise Interrupted("stopped between two batches")
        return stores

    def _score_part(self, row: Row, keys: Iterable[PictureKey], items: Mapping[str, Item], store: ScoreStore) -> None:
        marks = {key: picture_fingerprint(row.folder.path(*key)) for key in keys}
        fresh = [key for key, mark in marks.items() if store.get(key, mark) is None]
        if not fresh:
            return
        samples = [Sample(items[key[0]], key[1], row.folder.open(*key)) for key in fresh]
        found = self.benchmark.score(samples)
        store.add([(key, marks[key], facts) for key, facts in zip(fresh, found, strict=True)])

    def _store(self, row: str) -> ScoreStore:
        identity = f"{self.benchmark.judge} {self.questions}"
        return ScoreStore(self.folder.path / "scores" / row, identity, self.processes.rank)

    def _finish(self, rows: Sequence[Row], stores: Mapping[str, ScoreStore]) -> Result:
        facts = []
        for row in rows:
            stores[row.name].read()  # what the other processes found
            refuse = self.recipe.incomplete == "refuse"
            facts.append(gather(row, self.items, self.recipe.seeds, stores[row.name], refuse))
        result = make_result(self.recipe, self.benchmark, rows, facts, len(self.all_items), self.device)
        write_result(result, self.folder, rows, facts)
        return result


def _digest(items: Sequence[Item]) -> str:
    """Twelve digits that change with what is asked of the policies or of the judge."""
    facts = [[item.id, item.text, item.subject, dict(item.facts)] for item in items]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
