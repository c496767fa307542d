"""Image reconstruction as a benchmark of ``mentor evaluate``; the measure is in reconstruction.py.

A picture's facts are its L2 and those of the rows that need no policy, on the same original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from mentor_base.errors import UserError
from mentor_rl.evaluate import bootstrap
from mentor_rl.evaluate.benchmark import Facts, Item, Sample, Scored, Tabulated, Unscored
from mentor_rl.evaluate.picture_folder import listed
from mentor_rl.evaluate.recipes import ReconstructionRecipe
from mentor_rl.evaluate.reconstruction import (
    PROMPT,
    SEEN,
    as_the_encoder_sees,
    central_square,
    chosen,
    compare_pictures,
    psnr,
    rmse,
)
from mentor_rl.evaluate.result import Value
from mentor_rl.evaluate.tokenizer_ceiling import Ceiling
from mentor_rl.pictures import open_picture, unreadable

MADE = "made"
BASELINES = {"tokenizer": "tokenizer", "bicubic": f"{SEEN} bicubic", "copy": "copy"}


class Reconstruction:
    """See benchmark.Benchmark.

    Raises:
        UserError: too few pictures, or some that cannot be read, listed.
    """

    name = "reconstruction"
    floor: Facts | None = None  # a distance has no worst value

    def __init__(self, recipe: ReconstructionRecipe) -> None:
        self.recipe, self.root = recipe, Path(recipe.data)
        self.files = chosen(recipe.data, recipe.pictures, recipe.seed)
        faults = unreadable(self.files)
        if faults:
            raise UserError(f"{self.root}: {len(faults)} of the chosen pictures cannot be read: {listed(faults)}")
        self.ceiling = Ceiling(recipe.tokenizer)
        self._baselines = lru_cache(maxsize=1)(self._baselines_of)  # the seeds of an item are neighbours

    def items(self) -> Sequence[Item]:
        """One per picture; facts["file"] is its name in the folder."""
        return [
            Item(
                f"{number:04d}",
                PROMPT,
                (partial(_original, file, self.recipe.side),),
                facts={"file": file.relative_to(self.root).as_posix()},
            )
            for number, file in enumerate(self.files)
        ]

    def check(self) -> None:
        """The tokenizer, where one is named."""
        self.ceiling.check()

    def load(self, device: str) -> None:
        """The tokenizer, where one is named."""
        self.ceiling.load(device)

    def unload(self) -> None:
        """Free the tokenizer."""
        self.ceiling.unload()

    @property
    def judge(self) -> str:
        """The measure itself; no network judges."""
        return f"L2 of pixels in [-1, 1] at {self.recipe.side}{self.ceiling.said}"

    @property
    def stand_in(self) -> bool:
        """Never: the measure is arithmetic."""
        return False

    @property
    def prompts(self) -> str:
        """The folder and the seed of the choice."""
        return f"{len(self.files)} pictures of {self.recipe.data}, seed {self.recipe.seed}"

    def score(self, samples: Sequence[Sample]) -> list[Facts | Unscored]:
        """L2 of each picture, and of the baselines on its original."""
        return [
            {MADE: self._l2(sample.image, sample.item.references[0]()), **self._baselines(sample.item.id)}
            for sample in samples
        ]

    def tabulate(self, scored: Scored) -> Tabulated:
        """L2, RMSE and PSNR of the row and of the baselines; seeds averaged inside a picture."""
        pairs = scored.by_item()
        names = [MADE, *(name for name in BASELINES if name in pairs[0][1][0])]
        l2 = {name: [[float(fact[name]) for fact in facts] for _, facts in pairs] for name in names}
        per_item = {
            "item": [item.id for item, _ in pairs],
            "file": [item.facts["file"] for item, _ in pairs],
            "L2": [float(np.mean(values)) for values in l2[MADE]],
        }
        return Tabulated({BASELINES.get(name, ""): estimates(values) for name, values in l2.items()}, per_item)

    def notes(self) -> Sequence[str]:
        """What the paper leaves open."""
        return (
            "the paper gives neither range, resizing, root, pictures nor prompt of its L2: these numbers are not "
            "comparable with its table 4",
        )

    def _l2(self, image: Image.Image, original: Image.Image) -> float:
        return compare_pictures(image, original, self.recipe.side)

    def _baselines_of(self, item: str) -> dict[str, float]:
        original = _original(self.files[int(item)], self.recipe.side)
        rows = {"bicubic": as_the_encoder_sees(original, self.recipe.side), "copy": original}
        if self.ceiling.known:
            rows["tokenizer"] = self.ceiling([original])[0]
        return {name: self._l2(picture, original) for name, picture in rows.items()}


def estimates(l2_of_items: Sequence[Sequence[float]]) -> dict[str, Value]:
    """Means with intervals over pictures of L2, RMSE and PSNR. Per picture, then averaged: RMSE is no root of a mean.

    Args:
        l2_of_items: per picture one value for each seed.
    """
    columns: dict[str, Callable[[float], float]] = {"L2": float, "RMSE": rmse, "PSNR": psnr}
    out: dict[str, Value] = {}
    for name, measure in columns.items():
        values_I1 = np.array([[np.mean([measure(value) for value in values])] for values in l2_of_items])
        finite = bool(np.isfinite(values_I1).all())  # equal pictures have no PSNR
        out[name] = bootstrap.estimate(values_I1, lambda means: means[..., 0]) if finite else None
    return out


def _original(file: Path, side: int) -> Image.Image:
    return central_square(open_picture(file), side)
