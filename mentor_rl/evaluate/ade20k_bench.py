"""ADE20K-150 as a benchmark of ``mentor evaluate``; rules, protocols and the layout of the data are in ade20k.py.

One item is one label of one picture. A drawing's facts are its overlap with the label (protocol A) and, with a
tokenizer, that of the true cut-out through it; the ceiling of a whole picture's map lies with its first label. Maps of
the policy's drawings need all labels of a picture, so they are merged while the table is made.

Shapes: I pictures, K = 150 classes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.progress import ProgressBar
from mentor_rl.evaluate import bootstrap
from mentor_rl.evaluate.ade20k import (
    CLASSES,
    PROMPT,
    Scene,
    best_tau,
    composite,
    confusion,
    foreground,
    mean_iou,
    merged,
    nearest_resize,
    overlap,
    present,
    read_annotation,
    read_names,
    read_scenes,
    square,
    tally,
)
from mentor_rl.evaluate.benchmark import Facts, Item, Sample, Scored, Tabulated, Unscored
from mentor_rl.evaluate.recipes import Ade20kRecipe
from mentor_rl.evaluate.result import Value
from mentor_rl.evaluate.tokenizer_ceiling import Ceiling
from mentor_rl.pictures import open_picture

SUBSET = 100  # pictures of labels: all, unless the recipe says more
CEILING = "ceiling"
_MAPS_KEPT = 8


class Ade20k:
    """See benchmark.Benchmark.

    Raises:
        UserError: the data are not there, not in ADEChallengeData2016's layout, or an annotation cannot be read.
    """

    name = "ade20k"
    floor: Facts | None = None  # an undrawn label leaves its map open; a bound would have to merge again

    def __init__(self, recipe: Ade20kRecipe) -> None:
        self.recipe = recipe
        self.names = read_names(recipe.data)
        scenes = read_scenes(recipe.data)
        self._all = len(scenes)
        self.scenes = {scene.name: scene for scene in self._chosen(scenes)}
        self.present = {scene.name: present(read_annotation(scene.annotation)) for scene in self.scenes.values()}
        self.tau = recipe.tau
        self.ceiling = Ceiling(recipe.tokenizer)
        self._truth = lru_cache(maxsize=_MAPS_KEPT)(self._read_truth)
        self._squares = lru_cache(maxsize=_MAPS_KEPT)(self._read_square)
        self._ceilings = lru_cache(maxsize=2)(self._read_ceilings)

    def items(self) -> Sequence[Item]:
        """One per picture and label, by picture."""
        return [
            Item(
                f"{scene.name}_{label:03d}",
                PROMPT.format(label=self.names[label - 1]),
                (partial(self._squares, scene.name, self.recipe.side),),
                subject=self.names[label - 1],
                facts={"scene": scene.name, "label": label},
            )
            for scene in self.scenes.values()
            for label in (range(1, CLASSES + 1) if self.recipe.labels == "all" else self.present[scene.name])
        ]

    def check(self) -> None:
        """The tokenizer, where one is named; and the training pictures, where tau is tuned."""
        self.ceiling.check()
        if self.recipe.tune_tau:
            read_scenes(self.recipe.data, "training")

    def load(self, device: str) -> None:
        """The tokenizer, where one is named; and tau, where it is tuned."""
        self.ceiling.load(device)
        if self.ceiling.known and self.recipe.tune_tau:
            self.tau = self._tuned_tau()

    def unload(self) -> None:
        """Free the tokenizer."""
        self.ceiling.unload()

    @property
    def judge(self) -> str:
        """The thresholds; no network judges."""
        return f"masks by max(RGB) > {self.tau}/255, merged by 5 x 5 colour error{self.ceiling.said}"

    @property
    def stand_in(self) -> bool:
        """Never: the measure is arithmetic."""
        return False

    @property
    def prompts(self) -> str:
        """Pictures and labels."""
        which = "all 150 labels" if self.recipe.labels == "all" else "labels of the ground truth"
        return f"ADE20K validation, {len(self.scenes)} pictures, {which}"

    def score(self, samples: Sequence[Sample]) -> list[Facts | Unscored]:
        """Protocol A's pixels of each drawing, and of the ceiling."""
        return [self._facts(sample) for sample in samples]

    def tabulate(self, scored: Scored) -> Tabulated:
        """mIoU of each protocol that the labels allow, of the row and of the ceiling; seeds are pooled."""
        names = sorted({item.facts["scene"] for item, _ in scored.by_item()})
        place = {name: i for i, name in enumerate(names)}
        tallies = {column: np.zeros((len(names), CLASSES, 3), dtype=np.int64) for column in ("A", CEILING)}
        ceiling_B = np.zeros_like(tallies["A"])
        for item, facts in scored.by_item():
            row, label = place[item.facts["scene"]], item.facts["label"] - 1
            for fact in facts:
                tallies["A"][row, label] += fact.get("overlap", (0, 0, 0))
                tallies[CEILING][row, label] += fact.get("ceiling overlap", (0, 0, 0))
                ceiling_B[row] += tally(_unpacked(fact.get("ceiling map", ())))
        metrics = {"": {"mIoU A": estimate(tallies["A"]), **self._merged(scored, names)}}
        if tallies[CEILING].any():
            metrics[CEILING] = {"mIoU A": estimate(tallies[CEILING]), "mIoU B": estimate(ceiling_B)}
        asked = [(item.id, [fact["overlap"] for fact in facts]) for item, facts in scored.by_item() if facts[0]]
        ious = [float(np.mean([shared / union for shared, union, _ in overlaps])) for _, overlaps in asked]
        columns: dict[str, list[Any]] = {"item": [name for name, _ in asked], "IoU": [round(iou, 5) for iou in ious]}
        return Tabulated(metrics, columns)

    def notes(self) -> Sequence[str]:
        """The protocols."""
        notes = [] if len(self.scenes) == self._all else [f"{len(self.scenes)} of {self._all} pictures, chosen by seed"]
        notes += [
            "A: each label of the ground truth on its own; B: the same, merged into one map: optimistic beside "
            "segmenters, which are told no labels",
            "the paper does not give the protocol of its mIoU (table 8); C on all 2,000 pictures at 512 stands for it",
        ]
        if self.recipe.labels == "all":
            notes.append("C: all 150 labels of every picture, merged")
        return notes

    def _chosen(self, scenes: Sequence[Scene]) -> list[Scene]:
        wanted = self.recipe.pictures or (SUBSET if self.recipe.labels == "all" else len(scenes))
        if wanted >= len(scenes):
            return list(scenes)
        some = random.Random(self.recipe.seed).sample(list(scenes), wanted)
        return sorted(some, key=lambda scene: scene.name)

    def _facts(self, sample: Sample) -> Facts | Unscored:
        scene, label = sample.item.facts["scene"], sample.item.facts["label"]
        if sample.image.width != sample.image.height:
            return Unscored(f"expected a square drawing, found {sample.image.width} x {sample.image.height}")
        if label not in self.present[scene]:
            return {}  # asked for in protocol C alone; its map says what it claims
        facts: dict[str, Any] = {"overlap": self._overlap(sample.image, scene, label)}
        if self.ceiling.known:
            labels, drawings = self.present[scene], self._ceilings(scene)
            facts["ceiling overlap"] = self._overlap(drawings[labels.index(label)], scene, label)
            if label == labels[0]:
                facts["ceiling map"] = _packed(confusion(self._truth(scene), self._map(scene, drawings, labels)))
        return facts

    def _overlap(self, drawing: Image.Image, scene: str, label: int) -> tuple[int, int, int]:
        truth_HW = self._truth(scene)
        mask = nearest_resize(foreground(drawing, self.tau), (truth_HW.shape[0], truth_HW.shape[1]))
        return overlap(truth_HW, mask, label)

    def _map(self, scene: str, drawings: Sequence[Image.Image], labels: Sequence[int]) -> np.ndarray:
        """The merged map at the annotation's size."""
        side, truth_HW = drawings[0].width, self._truth(scene)
        alike = [drawing if drawing.width == side else drawing.resize((side, side)) for drawing in drawings]
        whole = merged(self._squares(scene, side), alike, labels, self.tau)
        return nearest_resize(whole, (truth_HW.shape[0], truth_HW.shape[1]))

    def _read_ceilings(self, scene: str) -> list[Image.Image]:
        """The true cut-outs of a picture through the tokenizer, by label."""
        picture, truth_HW = self._squares(scene, self.ceiling.side), self._truth(scene)
        return self.ceiling([composite(picture, truth_HW == k) for k in self.present[scene]])

    def _merged(self, scored: Scored, names: Sequence[str]) -> dict[str, Value]:
        """mIoU of protocol B, and of C where all labels were asked for."""
        drawn: dict[str, dict[int, list[int]]] = {name: {seed: [] for seed in scored.seeds} for name in names}
        for item in scored.items:
            for seed in scored.seeds:
                if (item.id, seed) in scored.facts:
                    drawn[item.facts["scene"]][seed].append(item.facts["label"])
        protocols = ("B", "C") if self.recipe.labels == "all" else ("B",)
        tallies = {protocol: np.zeros((len(names), CLASSES, 3), dtype=np.int64) for protocol in protocols}
        with ProgressBar(f"{scored.row}: merging", len(names)) as bar:
            for row, name in enumerate(names):
                for seed, labels in drawn[name].items():
                    opened = {k: open_picture(scored.path(f"{name}_{k:03d}", seed)) for k in labels}
                    for protocol in protocols:
                        tallies[protocol][row] += self._tally_of(name, opened, protocol)
                bar.advance()
        return {f"mIoU {protocol}": estimate(values) for protocol, values in tallies.items()}

    def _tally_of(self, scene: str, drawings: Mapping[int, Image.Image], protocol: str) -> np.ndarray:
        labels = [label for label in drawings if protocol == "C" or label in self.present[scene]]
        truth_HW = self._truth(scene)
        if not labels:
            return tally(confusion(truth_HW, np.zeros_like(truth_HW)))
        return tally(confusion(truth_HW, self._map(scene, [drawings[label] for label in labels], labels)))

    def _tuned_tau(self) -> int:
        """On true cut-outs of training pictures through the tokenizer."""
        scenes = read_scenes(self.recipe.data, "training")
        some = random.Random(self.recipe.seed).sample(scenes, min(self.recipe.tune_tau, len(scenes)))
        drawings: list[Image.Image] = []
        masks: list[np.ndarray] = []
        with ProgressBar("ade20k: tuning tau", len(some)) as bar:
            for scene in some:
                truth_HW = read_annotation(scene.annotation)
                picture = square(open_picture(scene.image), self.ceiling.side)
                own = [truth_HW == label for label in present(truth_HW)]
                drawings += self.ceiling([composite(picture, mask) for mask in own])
                masks += own
                bar.advance()
        if not masks:
            raise UserError(f"{self.recipe.data}: expected labelled training pictures to tune tau on, found none")
        return best_tau(drawings, masks)[0]

    def _read_truth(self, scene: str) -> np.ndarray:
        return read_annotation(self.scenes[scene].annotation)

    def _read_square(self, scene: str, side: int) -> Image.Image:
        return square(open_picture(self.scenes[scene].image), side)


def estimate(tallies_IK3: np.ndarray) -> Value:
    """[mIoU, low, high] over the whole set; pictures are drawn anew for the interval."""
    flat = tallies_IK3.reshape(len(tallies_IK3), -1).astype(np.float64)
    return bootstrap.estimate(flat, lambda means: mean_iou(means.reshape(*means.shape[:-1], CLASSES, 3)))


def _packed(counts: np.ndarray) -> list[list[int]]:
    """The cells of a confusion matrix that are not 0: [true - 1, predicted, pixels]."""
    return [[int(t), int(p), int(counts[t, p])] for t, p in np.argwhere(counts)]


def _unpacked(cells: Sequence[Sequence[int]]) -> np.ndarray:
    counts = np.zeros((CLASSES, CLASSES + 1), dtype=np.int64)
    for true, predicted, pixels in cells:
        counts[true, predicted] = pixels
    return counts
