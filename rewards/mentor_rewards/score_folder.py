"""Score a folder of pictures with a composite, outside of any training.

score_rows.py says what may be scored, score_table.py what is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mentor_rewards.composite import Composite
from mentor_rewards.reward_scores import CompositeScores, RewardStats, columns_of, summary
from mentor_rewards.score_rows import Listing, read_listing
from mentor_rewards.score_table import ScoreTable


@dataclass(frozen=True)
class FolderScores:
    """What scoring a folder gave: the table, statistics by reward over all its rows, and how many were there before."""

    table: ScoreTable
    statistics: dict[str, RewardStats]
    resumed: int


def score_folder(
    composite: Composite,
    images: Path,
    prompts: Path | None = None,
    out: Path | None = None,
    batch: int = 64,
    stream: TextIO | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FolderScores:
    """Score every row with every reward of a loaded composite.

    Args:
        images: pictures; ``prompts`` (CSV, JSON lines, parquet) defaults to its prompts.jsonl, if there.
        out: a CSV or parquet. What it has already is not scored again, so that a killed call goes on; but where a
            reward depends on a picture's neighbours, a batch that was cut off is scored anew as a whole.
        batch: rows that are read, scored and written together.
        stream: where the CSV goes without ``out``.
        progress: called with rows done and rows in all.

    Raises:
        RewardError: an unreadable row or picture, a reward that none of the rows has the needed columns for, or an
            ``out`` of other rewards or rows. What was scored before is kept.
    """
    listing = read_listing(images, prompts)
    composite.check_columns(columns_of(listing.facts()))
    table = ScoreTable(out, _identities(composite), listing.rows, stream)
    if not all(spec.batch_invariant for spec in composite.specs.values()):
        table.keep(len(table) // batch * batch if len(table) < len(listing) else len(table))
    resumed, seconds = len(table), dict.fromkeys(composite.names, 0.0)
    progress(resumed, len(listing))
    while len(table) < len(listing):
        rows = range(len(table), min((len(table) // batch + 1) * batch, len(listing)))
        scores = composite.score(listing.batch(rows), tolerate=True)
        table.append(scores.raw, scores.reasons)
        seconds = {name: seconds[name] + scores.seconds[name] for name in seconds}
        progress(len(table), len(listing))
    table.finish()
    return FolderScores(table, _statistics(composite, listing, table, seconds), resumed)


def _identities(composite: Composite) -> dict[str, dict[str, object]]:
    """What makes scores comparable: the same class, version, options, dtype and weights."""
    return {
        name: {
            "use": entry.use or name,
            "version": composite.specs[name].version,
            "options": entry.options,
            "dtype": entry.dtype,
            "weights": dict(composite.specs[name].weights),
        }
        for name, entry in composite.entries.items()
    }


def _statistics(
    composite: Composite, listing: Listing, table: ScoreTable, seconds: dict[str, float]
) -> dict[str, RewardStats]:
    facts = listing.facts()
    applies = {name: composite.applicable(name, facts).applies for name in composite.names}
    details: dict[str, dict[str, list[object]]] = {name: {} for name in composite.names}
    scores = CompositeScores(table.raw, table.reasons, applies, details, seconds, composite.entries, composite.specs)
    return summary(scores, listing.group_ids)
