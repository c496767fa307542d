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
from typing import TYPE_CHECKING, Literal

import numpy as np
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardBatch, RewardEntry
from PIL import Image

from mentor_base.data.emoji import EmojiWorld
from mentor_base.data.schema import Example, Prompt
from mentor_base.settings import EmojiData, Sampling, Split
from mentor_rl.evaluate import bootstrap
from mentor_rl.evaluate.cells import Cell
from mentor_rl.evaluate.evaluator import Evaluator
from mentor_rl.evaluate.paired import PRODUCT, RATIO, statistic
from mentor_rl.evaluate.recipes import BASELINES
from mentor_rl.evaluate.result import Value
from mentor_rl.evaluate.tokenizer_ceiling import through_tokenizer

if TYPE_CHECKING:
    from mentor_base.model import MentorForConditionalGeneration
    from mentor_base.processor import MentorProcessor
    from mentor_base.vq import VQModel

BENCHMARK = "emojibench"
ITEM_SEED = 4711  # decides which prompts the benchmark has
SWEEP_SPLIT: Split = "val"
GALLERY_ITEMS = 10


@dataclass(frozen=True)
class Part:
    """One picture of every item of a split by one policy: what is drawn by one process, and kept on disk as one cell.

    Attributes:
        asks: "subject": the prompts with their references. "text only": the same prompts without. "shapes":
            text-to-image of coloured shapes, judged exactly.
        seed: of the sampling.
        guidance: scale.
    """

    asks: Literal["subject", "text only", "shapes"]
    split: Split
    seed: int
    guidance: float


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


def bench_items(split: str, items: int) -> list[Example]:
    """The benchmark's items of a split: always the same ones."""
    world = EmojiWorld()
    return [world.example("subject", split, ITEM_SEED, i) for i in range(items)]


def draw_part(
    model: MentorForConditionalGeneration,
    processor: MentorProcessor,
    evaluator: Evaluator,
    part: Part,
    *,
    items: int,
    temperature: float,
    batch: int,
) -> Cell:
    """Draw the first ``items`` items of a part, ``batch`` pictures at a time, and score them."""
    from mentor_base.generate import draw

    prompts = _shape_prompts(part.split, items) if part.asks == "shapes" else _prompts(part.split, items)
    asked = prompts
    if part.asks == "text only":  # CP is still taken against the reference
        asked = [Prompt(prompt.plain_text, (), prompt.subject, prompt.meta) for prompt in prompts]
    sampling = Sampling(temperature=temperature, guidance_scale=part.guidance, seed=part.seed)
    images = draw(model, processor, asked, sampling=sampling, batch=batch, seed=part.seed).images
    return _shapes_scored(images, prompts) if part.asks == "shapes" else _scored(evaluator, images, prompts)


def best_guidance(sweep: Mapping[float, Measured]) -> float:
    """The scale with the largest CP·PF (product of means); the smaller scale on a tie."""
    return max(sorted(sweep), key=lambda scale: float(sweep[scale].cp_IS.mean() * sweep[scale].pf_IS.mean()))


def baseline_rows(
    examples: Sequence[Example], evaluator: Evaluator, tokenizer: VQModel | None = None
) -> dict[str, Measured]:
    """Rows that need no drawing; ``target, tokenizer`` only with a tokenizer."""
    world, prompts = EmojiWorld(), [example.prompt() for example in examples]
    others = [world.example("subject", "train", ITEM_SEED, i).target for i in range(len(examples))]
    targets = [example.target for example in examples]
    copy, chance, target, through = BASELINES
    pictures = {copy: [example.images[0] for example in examples], chance: others, target: targets}
    if tokenizer is not None:
        pictures[through] = through_tokenizer(tokenizer, targets)
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


def _prompts(split: Split, items: int) -> list[Prompt]:
    return [example.prompt() for example in bench_items(split, items)]


def _shape_prompts(split: Split, items: int) -> list[Prompt]:
    world = EmojiWorld(EmojiData(shapes=1.0))
    return [world.example("t2i", split, ITEM_SEED, i).prompt() for i in range(items)]


def _scored(evaluator: Evaluator, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Cell:
    scores = evaluator.score(images, prompts)
    columns = {"cp": scores.cp_N, "pf": scores.pf_N, "style": scores.style_N, "ground": scores.ground_N}
    return Cell(columns, tuple(images[:GALLERY_ITEMS]))


def _shapes_scored(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Cell:
    """What share of count, colour, shape and place is right (shape_match) in [0, 1]; nan where it could not tell."""
    rows = RewardBatch(
        images=list(images),
        prompts=[p.plain_text for p in prompts],
        references=[()] * len(prompts),
        subjects=[p.subject for p in prompts],
        group_ids=list(range(len(prompts))),
        metadata=[p.meta for p in prompts],
    )
    with Composite({"shape_match": RewardEntry()}) as judge:
        scores = judge.score(rows).raw["shape_match"]
    return Cell({"shapes": np.array([np.nan if score is None else score for score in scores])}, ())
