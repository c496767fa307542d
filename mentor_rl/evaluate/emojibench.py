"""EmojiBench: concept preservation (CP) and prompt following (PF) on subjects and pairs that training never showed.

Items are subject-driven prompts of the emoji world (reference, label, wanted style and ground). Each policy draws every
item with several sampling seeds; the evaluator (evaluator.py), which no reward knows, scores the pictures. As in the
paper (MENTOR, table 1) CP·PF is the product of the means and CP/PF their ratio; the mean of the pictures' own products
stands beside it. Intervals: 95 % bootstrap over items, seeds averaged inside.

Guidance. A policy is reported at the scale of ``guidance`` with the best CP·PF on the *val* split, never on the test
items; the sweep is kept in ``Result.details``. So before and after RL are each taken at their own best scale.

Rows beside the policies, on the same items:
    copy the reference        high CP, low PF: what a policy gets that ignores the instruction
    text only (policy)        the first policy, asked without the picture: ignores the reference
    random training picture   chance
    target                    the true drawing: the ceiling of the measure
    target, tokenizer         the same through the first policy's VQ tokenizer: the ceiling of any policy

Published DreamBench++ numbers come from another judge and other pictures: never put them in one table with these.

Shapes: I items, S sampling seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardBatch, RewardEntry
from PIL import Image

from mentor_base.data.emoji import EmojiWorld
from mentor_base.data.schema import Example, Prompt
from mentor_base.progress import ProgressBar
from mentor_base.settings import EmojiData, Sampling, Split
from mentor_rl.evaluate import bootstrap
from mentor_rl.evaluate.cells import Cell, CellStore
from mentor_rl.evaluate.evaluator import Evaluator
from mentor_rl.evaluate.paired import PRODUCT, RATIO, statistic
from mentor_rl.evaluate.result import Value
from mentor_rl.evaluate.tokenizer_ceiling import through_tokenizer

if TYPE_CHECKING:
    from mentor_base.model import MentorForConditionalGeneration
    from mentor_base.processor import MentorProcessor

BENCHMARK = "emojibench"
ITEM_SEED = 4711  # decides which prompts the benchmark has
SWEEP_SPLIT: Split = "val"
GALLERY_ITEMS = 10


@dataclass(frozen=True)
class Measured:
    """The scores of one row's pictures, and the first seed's pictures for the gallery."""

    cp_IS: np.ndarray
    pf_IS: np.ndarray
    style_IS: np.ndarray
    ground_IS: np.ndarray
    pictures: tuple[Image.Image, ...]

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Measured:
        """One cell per sampling seed."""
        cp, pf, style, ground = (
            np.stack([cell.columns[name] for cell in cells], axis=1) for name in ("cp", "pf", "style", "ground")
        )
        return cls(cp, pf, style, ground, cells[0].pictures)

    @classmethod
    def joined(cls, members: Sequence[Measured]) -> Measured:
        """Policies that differ in their training seed, as further seeds of one row."""
        names = ("cp_IS", "pf_IS", "style_IS", "ground_IS")
        cp, pf, style, ground = (np.concatenate([getattr(m, name) for m in members], axis=1) for name in names)
        return cls(cp, pf, style, ground, members[0].pictures)

    def table(self) -> np.ndarray:
        """Per item, seeds averaged: CP, PF, CP·PF of each picture, style, ground -> [I, 5]."""
        columns = (self.cp_IS, self.pf_IS, self.cp_IS * self.pf_IS, self.style_IS, self.ground_IS)
        return np.stack([bootstrap.over_seeds(column) for column in columns], axis=1)


def bench_items(split: str, items: int, world: EmojiWorld | None = None) -> list[Example]:
    """The benchmark's items of a split: always the same ones."""
    world = world or EmojiWorld()
    return [world.example("subject", split, ITEM_SEED, i) for i in range(items)]


def bench_policy(
    model: MentorForConditionalGeneration,
    processor: MentorProcessor,
    evaluator: Evaluator,
    *,
    split: str,
    items: int,
    seeds: Sequence[int] = (0, 1, 2),
    guidance: float = 1.0,
    temperature: float = 1.0,
    batch: int = 64,
    with_reference: bool = True,
    name: str = "policy",
    cells: CellStore | None = None,
    progress: ProgressBar | None = None,
) -> Measured:
    """Draw the items of one split with every seed at one guidance scale, and score them.

    Args:
        with_reference: False asks with the text alone; CP is still taken against the reference.
        name: for the progress bar.
        cells: where this checkpoint's finished (split, seed, scale) cells are kept; None keeps none.
    """
    from mentor_base.generate import draw

    examples = bench_items(split, items)
    prompts = [example.prompt() for example in examples]
    asked = prompts if with_reference else [Prompt(p.plain_text, (), p.subject, p.meta) for p in prompts]
    store = cells or CellStore(None)
    made = []
    for seed in seeds:
        key = {"split": split, "seed": seed, "scale": guidance, "items": items}
        key |= {"temperature": temperature, "with_reference": with_reference}
        cell = store.get(key)
        if cell is None:
            sampling = Sampling(temperature=temperature, guidance_scale=guidance, seed=seed)
            images = draw(model, processor, asked, sampling=sampling, batch=batch, seed=seed).images
            cell = _scored(evaluator, images, prompts)
            store.put(key, cell)
        made.append(cell)
        if progress is not None:
            progress.advance(items, note=f"{name} {split} guidance {guidance:g}")
        store.check_interrupt()
    return Measured.of(made)


def best_guidance(sweep: Mapping[float, Measured]) -> float:
    """The scale with the largest CP·PF (product of means); the smaller scale on a tie."""
    return max(sorted(sweep), key=lambda scale: float(sweep[scale].cp_IS.mean() * sweep[scale].pf_IS.mean()))


def shapes_score(
    model: MentorForConditionalGeneration,
    processor: MentorProcessor,
    *,
    split: str,
    items: int,
    seed: int = 0,
    guidance: float = 1.0,
    temperature: float = 1.0,
    batch: int = 64,
) -> np.ndarray:
    """Text-to-image of coloured shapes, judged exactly (shape_match: count, colour, shape, place) -> [I] in [0, 1]."""
    from mentor_base.generate import draw

    world = EmojiWorld(EmojiData(shapes=1.0))
    prompts = [world.example("t2i", split, ITEM_SEED, i).prompt() for i in range(items)]
    sampling = Sampling(temperature=temperature, guidance_scale=guidance, seed=seed)
    images = draw(model, processor, prompts, sampling=sampling, batch=batch, seed=seed).images
    rows = RewardBatch(
        images=images,
        prompts=[p.plain_text for p in prompts],
        references=[()] * items,
        subjects=[p.subject for p in prompts],
        group_ids=list(range(items)),
        metadata=[p.meta for p in prompts],
    )
    with Composite({"shape_match": RewardEntry()}) as judge:
        scores = judge.score(rows).raw["shape_match"]
    return np.array([np.nan if score is None else score for score in scores])


def baseline_rows(
    examples: Sequence[Example], evaluator: Evaluator, model: MentorForConditionalGeneration | None = None
) -> dict[str, Measured]:
    """Rows that need no drawing; ``target, tokenizer`` only with a model."""
    world, prompts = EmojiWorld(), [example.prompt() for example in examples]
    others = [world.example("subject", "train", ITEM_SEED, i).target for i in range(len(examples))]
    pictures = {
        "copy the reference": [example.images[0] for example in examples],
        "random training picture": others,
        "target": [example.target for example in examples],
    }
    if model is not None:
        pictures["target, tokenizer"] = through_tokenizer(model.vq, pictures["target"])
    return {name: Measured.of([_scored(evaluator, images, prompts)]) for name, images in pictures.items()}


def metrics_of(table_I5: np.ndarray) -> dict[str, Value]:
    """Estimates of one row from Measured.table: [value, low, high] each."""
    return {
        "CP": bootstrap.estimate(table_I5, lambda m: m[..., 0]),
        "PF": bootstrap.estimate(table_I5, lambda m: m[..., 1]),
        "CP·PF": bootstrap.estimate(table_I5, statistic(PRODUCT)),
        "CP·PF per picture": bootstrap.estimate(table_I5, lambda m: m[..., 2]),
        "CP/PF": bootstrap.estimate(table_I5, statistic(RATIO)),
        "style": bootstrap.estimate(table_I5, lambda m: m[..., 3]),
        "ground": bootstrap.estimate(table_I5, lambda m: m[..., 4]),
    }


def row_name(policy: str, split: str) -> str:
    """The key of a row in Result.metrics and Result.per_item."""
    return f"{policy} · {split.replace('_', ' ')}"


def _scored(evaluator: Evaluator, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Cell:
    scores = evaluator.score(images, prompts)
    columns = {"cp": scores.cp_N, "pf": scores.pf_N, "style": scores.style_N, "ground": scores.ground_N}
    return Cell(columns, tuple(images[:GALLERY_ITEMS]))
