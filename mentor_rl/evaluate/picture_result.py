"""From the facts of all pictures to a Result, its Markdown and its gallery: what the first process does at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder, write_atomically
from mentor_rl.evaluate.benchmark import Benchmark, Facts, Item, PictureKey, Scored
from mentor_rl.evaluate.gallery import save_gallery
from mentor_rl.evaluate.picture_folder import PictureFolder, listed
from mentor_rl.evaluate.published import published_markdown
from mentor_rl.evaluate.recipes import PictureRecipe
from mentor_rl.evaluate.result import PART, Result, Value
from mentor_rl.evaluate.score_store import ScoreStore, picture_fingerprint

LOWER_BOUND = "missing counted as 0"
REASONS = 20  # that a result keeps for pictures without a score


@dataclass(frozen=True)
class Row:
    """A policy, or a folder of pictures.

    Attributes:
        source: the checkpoint with its fingerprint, or the folder.
        broken: why pictures that are there cannot be scored.
    """

    name: str
    folder: PictureFolder
    source: str
    broken: Mapping[PictureKey, str]


@dataclass(frozen=True)
class RowFacts:
    """What is known of a row, and why the rest is not."""

    scored: Scored
    unscored: Mapping[PictureKey, str]


def gather(row: Row, items: Sequence[Item], seeds: Sequence[int], store: ScoreStore, refuse: bool) -> RowFacts:
    """The facts of a row's pictures.

    Raises:
        UserError: not one picture has facts; with ``refuse`` also when some have none.
    """
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
    if not facts or (unscored and refuse):
        reasons = listed([f"{item}_{seed}: {why}" for (item, seed), why in unscored.items()])
        without = " (incomplete: score makes a table without them)" if facts else ""
        raise UserError(
            f"{row.name}: {len(unscored)} of {len(row.folder.keys)} pictures have no score: {reasons}; the same "
            f"command asks for these again{without}"
        )
    return RowFacts(Scored(row.name, tuple(items), tuple(seeds), facts, row.folder.path), unscored)


def make_result(
    recipe: PictureRecipe,
    benchmark: Benchmark,
    rows: Sequence[Row],
    facts: Sequence[RowFacts],
    all_items: int,
    device: str,
) -> Result:
    """The table of all rows. ``all_items``: how many the benchmark has without ``limit``."""
    metrics: dict[str, dict[str, Value]] = {}
    per_item: dict[str, dict[str, list[Any]]] = {}
    covered: dict[str, dict[str, Any]] = {}
    told: list[str] = []
    for row, known in zip(rows, facts, strict=True):
        table = benchmark.tabulate(known.scored)
        metrics |= {_joined(row.name, part): dict(values) for part, values in table.metrics.items()}
        per_item[row.name] = dict(table.per_item)
        told += [note for note in table.notes if note not in told]
        covered[row.name] = {"asked": len(row.folder.keys), "scored": len(known.scored.facts)}
        if known.unscored:
            first = list(known.unscored.items())[:REASONS]
            covered[row.name]["first reasons"] = [f"{item}_{seed}: {why}" for (item, seed), why in first]
            metrics |= _lower_bound(benchmark, known.scored)
    items = len(facts[0].scored.items)
    limits = [f"the first {items} of {all_items} items only (limit): not the whole benchmark"]
    return Result(
        benchmark=benchmark.name,
        metrics=metrics,
        per_item=per_item,
        coverage={
            "items": sum(each["asked"] for each in covered.values()),
            "scored": sum(each["scored"] for each in covered.values()),
        },
        judge=benchmark.judge,
        stand_in=benchmark.stand_in,
        seeds=recipe.seeds,
        details={
            "rows": covered,
            "sampling": recipe.sampling.model_dump(exclude={"seed"}),
            "dtype": recipe.dtype,
            "device": device,
            "items": items,
            "settings": _own_settings(recipe),
            "all items": all_items,
        },
        checkpoints={row.name: row.source for row in rows},
        prompts=benchmark.prompts,
        notes=(*(limits if items < all_items else ()), *told, *benchmark.notes()),
    )


def write_result(result: Result, run: RunFolder, rows: Sequence[Row], facts: Sequence[RowFacts]) -> None:
    """Gallery and Markdown first: a run with its JSON is finished."""
    file = run.result_path(result.benchmark)
    folders = {row.name: row.folder for row in rows}
    pictures = file.parent / "pictures" / result.benchmark
    save_gallery(file.with_suffix(".png"), pictures, folders, [known.scored for known in facts])
    text = result.markdown() + result.protocol() + published_markdown(result)
    write_atomically(file.with_suffix(".md"), text)
    result.write(file)


def _lower_bound(benchmark: Benchmark, scored: Scored) -> dict[str, dict[str, Value]]:
    """The row with its missing pictures at the benchmark's floor; nothing where there is no such floor."""
    floor = benchmark.floor
    if floor is None:
        return {}
    keys = [(item.id, seed) for item in scored.items for seed in scored.seeds]
    filled = {key: scored.facts.get(key, floor) for key in keys}
    table = benchmark.tabulate(Scored(scored.row, scored.items, scored.seeds, filled, scored.path))
    return {_joined(scored.row, LOWER_BOUND): dict(table.metrics[""])}


def _own_settings(recipe: PictureRecipe) -> dict[str, Any]:
    """What a benchmark's recipe says beyond the keys that all share."""
    own = type(recipe).model_fields.keys() - PictureRecipe.model_fields.keys()
    return recipe.model_dump(mode="json", include=own)


def _joined(row: str, part: str) -> str:
    return f"{row}{PART}{part}" if part else row
