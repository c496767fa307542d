"""One run of a benchmark on pictures: draw what is missing, score what is new, make the table and the gallery.

RUN/pictures/<policy>/<item id>_<seed>.png    and policy.json: which weights drew them
RUN/scores/<row>/                             score_store.py
RUN/results/<benchmark>.json, .md, .png
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.progress import ProgressBar
from mentor_base.runlog import RunFolder, write_atomically
from mentor_rl.evaluate.benchmark import Benchmark, Facts, Item, PictureKey, Sample, Scored
from mentor_rl.evaluate.drawing import draw_missing
from mentor_rl.evaluate.fingerprint import fingerprint
from mentor_rl.evaluate.gallery import picture_gallery
from mentor_rl.evaluate.picture_folder import PictureFolder, listed
from mentor_rl.evaluate.processes import Processes
from mentor_rl.evaluate.published import published_markdown
from mentor_rl.evaluate.recipes import PictureRecipe
from mentor_rl.evaluate.result import Result, Value
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
LOWER_BOUND = "missing counted as 0"


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


def build_benchmark(recipe: PictureRecipe) -> Benchmark:
    """The benchmark that a recipe names.

    Raises:
        UserError: its data are not there.
    """
    module, name = BUILDERS[recipe.benchmark].split(":")
    built: Benchmark = getattr(import_module(module), name)(recipe)
    return built


@dataclass(frozen=True)
class _Row:
    """A policy, or a folder of pictures. ``broken``: why pictures that are there cannot be scored."""

    name: str
    folder: PictureFolder
    source: str
    broken: Mapping[PictureKey, str]


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
        drawn = [self._drawn(name, path) for name, path in self.recipe.policies.items()]
        self.processes.wait()
        rows = [*drawn, *given]
        self.benchmark.load(self.device)
        try:
            facts = self._score(rows)
            self.processes.wait()
            return self._tabulate(rows, facts) if self.processes.first else None
        finally:
            self.benchmark.unload()

    def _drawn(self, name: str, path: str) -> _Row:
        """The pictures of a policy, drawn where they are missing."""
        folder = PictureFolder.of(self.folder.path / "pictures" / name, self.items, self.recipe.seeds)
        source = f"{path} {fingerprint(path)}"
        self._sign(folder.folder, source)
        draw_missing(
            self._policy_loader(path),
            self.items,
            self.recipe.seeds,
            folder,
            sampling=self.recipe.sampling,
            batch=self.recipe.batch,
            processes=self.processes,
            guard=self.guard,
            label=name,
        )
        return _Row(name, folder, source, {})

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
        file = folder / "policy.json"
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

    def _given(self, name: str, path: str) -> _Row:
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
        return _Row(name, folder, str(path), faults.broken)

    def _score(self, rows: Sequence[_Row]) -> dict[str, ScoreStore]:
        """Score this process's share of the pictures that have no facts yet."""
        stores = {row.name: self._store(row.name) for row in rows}
        by_id = {item.id: item for item in self.items}
        work: list[tuple[_Row, list[PictureKey]]] = []
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

    def _score_part(self, row: _Row, keys: Iterable[PictureKey], items: Mapping[str, Item], store: ScoreStore) -> None:
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

    def _tabulate(self, rows: Sequence[_Row], stores: Mapping[str, ScoreStore]) -> Result:
        metrics: dict[str, dict[str, Value]] = {}
        per_item: dict[str, dict[str, list[Any]]] = {}
        covered: dict[str, dict[str, Any]] = {}
        for row in rows:
            stores[row.name].read()
            scored, unscored = self._gathered(row, stores[row.name])
            self._check_coverage(row, scored, unscored)
            table = self.benchmark.tabulate(scored)
            metrics |= {_joined(row.name, part): dict(values) for part, values in table.metrics.items()}
            per_item[row.name] = dict(table.per_item)
            covered[row.name] = {"asked": len(row.folder.keys), "scored": len(scored.facts)}
            if unscored:
                covered[row.name]["first reasons"] = [f"{i}_{s}: {why}" for (i, s), why in list(unscored.items())[:20]]
                metrics |= self._lower_bound(scored)
        result = Result(
            benchmark=self.benchmark.name,
            metrics=metrics,
            per_item=per_item,
            coverage={
                "items": sum(each["asked"] for each in covered.values()),
                "scored": sum(each["scored"] for each in covered.values()),
            },
            judge=self.benchmark.judge,
            stand_in=self.benchmark.stand_in,
            seeds=self.recipe.seeds,
            details={
                "rows": covered,
                "sampling": self.recipe.sampling.model_dump(exclude={"seed"}),
                "dtype": self.recipe.dtype,
                "device": self.device,
                "items": len(self.items),
                "all items": len(self.all_items),
            },
            checkpoints={row.name: row.source for row in rows},
            prompts=self.benchmark.prompts,
            notes=(*self._limits(), *self.benchmark.notes()),
        )
        return self._written(result, rows)

    def _gathered(self, row: _Row, store: ScoreStore) -> tuple[Scored, dict[PictureKey, str]]:
        """What is known of a row, and why the rest is not."""
        facts: dict[PictureKey, Facts] = {}
        unscored: dict[PictureKey, str] = dict.fromkeys(row.folder.missing(), "no such picture") | dict(row.broken)
        for key in row.folder.keys:
            if key in unscored:
                continue
            mark = picture_fingerprint(row.folder.path(*key))
            found = store.get(key, mark)
            if found is None:
                unscored[key] = store.reason(key, mark)
            else:
                facts[key] = found
        return Scored(row.name, self.items, self.recipe.seeds, facts, row.folder.path), unscored

    def _check_coverage(self, row: _Row, scored: Scored, unscored: Mapping[PictureKey, str]) -> None:
        if not scored.facts or (unscored and self.recipe.incomplete == "refuse"):
            reasons = listed([f"{item}_{seed}: {why}" for (item, seed), why in unscored.items()])
            raise UserError(
                f"{row.name}: {len(unscored)} of {len(row.folder.keys)} pictures have no score: {reasons}; the same "
                "command asks for these again (incomplete: score makes a table without them)"
            )

    def _lower_bound(self, scored: Scored) -> dict[str, dict[str, Value]]:
        floor = self.benchmark.floor
        if floor is None:
            return {}
        facts = {(item.id, seed): scored.facts.get((item.id, seed), floor)
                 for item in scored.items for seed in scored.seeds}  # fmt: skip
        table = self.benchmark.tabulate(Scored(scored.row, scored.items, scored.seeds, facts, scored.path))
        return {_joined(scored.row, LOWER_BOUND): dict(table.metrics[""])}

    def _limits(self) -> list[str]:
        if len(self.items) == len(self.all_items):
            return []
        return [f"the first {len(self.items)} of {len(self.all_items)} items only (limit): not the whole benchmark"]

    def _written(self, result: Result, rows: Sequence[_Row]) -> Result:
        file = self.folder.result_path(result.benchmark)
        picture_gallery(self.items, {row.name: row.folder for row in rows}, self.recipe.seeds[0]).save(
            file.with_suffix(".png")
        )
        write_atomically(
            file.with_suffix(".md"), result.markdown() + protocol_markdown(result) + published_markdown(result)
        )
        result.write(file)  # last: a run with its JSON is finished
        return result


def protocol_markdown(result: Result) -> str:
    """What was measured, with what, on what: the lines below a table."""
    judge = "judge (a stand-in)" if result.stand_in else "judge"
    lines = [f"- {judge}: {result.judge}", f"- prompts: {result.prompts}"]
    lines += [f"- {row}: {source}" for row, source in result.checkpoints.items()]
    sampling = ", ".join(f"{name} {value:g}" for name, value in result.details["sampling"].items())
    lines += [f"- seeds: {', '.join(map(str, result.seeds))}; sampling of policies: {sampling}"]
    lines += [f"- scored: {result.coverage['scored']:g} of {result.coverage['items']:g} pictures"]
    lines += [f"- {note}" for note in result.notes]
    return "\n" + "\n".join(lines) + "\n"


def _digest(items: Sequence[Item]) -> str:
    """Twelve digits that change with what is asked of the policies or of the judge."""
    facts = [[item.id, item.text, item.subject, dict(item.facts)] for item in items]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _joined(row: str, part: str) -> str:
    return f"{row} · {part}" if part else row
