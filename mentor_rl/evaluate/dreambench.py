"""DreamBench (Ruiz et al., arXiv 2208.12242): CLIP-I, CLIP-T and DINO of thirty subjects in 25 situations each.

A number is 100 times the cosine of unit features in float32, mean over pictures. ± is the sample standard deviation
over the generation seeds. Towers as DreamBench++ has them: CLIP ViT-B/32, DINO ViT-S/8, DINOv2 ViT-S/14; DINO ViT-S/16,
which DreamBooth itself used, stands beside them.

Deviations, or decisions where the paper is silent:
- the reference is a subject's first picture, for the policy and for CLIP-I and DINO; with ``all_references`` the mean
  over all of its pictures, DreamBooth's way, is printed too;
- one picture per prompt and seed (MENTOR has 750 pairs; DreamBooth draws four for each prompt);
- prompts have no unique token.

Shapes: S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from mentor_rewards.contract import RewardEntry

from mentor_rl.evaluate.benchmark import Facts, Item, Sample, Scored, Tabulated, Unscored
from mentor_rl.evaluate.dreambench_data import items_of, read_subjects
from mentor_rl.evaluate.recipes import DreamBenchRecipe, Towers
from mentor_rl.evaluate.result import Value
from mentor_rl.evaluate.reward_scorer import RewardScorer
from mentor_rl.evaluate.towers import is_published
from mentor_rl.pictures import open_picture

ALL = ", all references"
IMAGE_METRICS = ("DINOv1", "DINOv1 S/16", "DINOv2", "CLIP-I")


class DreamBench:
    """See benchmark.Benchmark. Facts of a picture: {"DINOv1": cosine, "CLIP-I": ...}."""

    name = "dreambench"
    floor: Facts | None = None  # a cosine of 0 is no worst case

    def __init__(self, recipe: DreamBenchRecipe) -> None:
        self.recipe = recipe
        self.subjects = {subject.name: subject for subject in read_subjects(Path(recipe.data))}
        self.entries = entries_of(recipe.towers)
        self._towers = RewardScorer(self.entries)
        images = {name: entry for name, entry in self.entries.items() if name in IMAGE_METRICS}
        self._against_all = RewardScorer(images) if recipe.all_references else None

    def items(self) -> Sequence[Item]:
        """750: 25 prompts for each subject."""
        return list(items_of(list(self.subjects.values()), self.recipe.template))

    def check(self) -> None:
        """All towers."""
        self._towers.check()  # those against all references are among them

    def load(self, device: str) -> None:
        """All towers."""
        for scorer in self._scorers():
            scorer.load(device)

    def unload(self) -> None:
        """All towers."""
        for scorer in self._scorers():
            scorer.unload()

    @property
    def judge(self) -> str:
        """All towers with their checksums."""
        return "; ".join(scorer.judge for scorer in self._scorers())

    @property
    def stand_in(self) -> bool:
        """With towers of other sizes than the published ones."""
        return not all(is_published(name, str(entry.options["checkpoint"])) for name, entry in self.entries.items())

    @property
    def prompts(self) -> str:
        """The data set."""
        return f"DreamBench, {len(self.subjects)} subjects with 25 prompts, asked as '{self.recipe.template}'"

    def score(self, samples: Sequence[Sample]) -> list[Facts | Unscored]:
        """Cosines of each picture."""
        found = self._towers.score(samples)
        if self._against_all is None:
            return found
        again = self._against_all.score([_with_all(sample, self._pictures(sample.item)) for sample in samples])
        return [_joined(first, second) for first, second in zip(found, again, strict=True)]

    def tabulate(self, scored: Scored) -> Tabulated:
        """Overall, and of living subjects and objects."""
        metrics = {"": self._row(scored, scored.items)}
        for part, live in (("live subjects", True), ("objects", False)):
            items = [item for item in scored.items if item.facts["live"] == live]
            if any((item.id, seed) in scored.facts for item in items for seed in scored.seeds):
                metrics[part] = self._row(scored, items)
        pairs = scored.by_item()
        columns = {name: [100 * _mean(facts, name) for _, facts in pairs] for name in self._names()}
        return Tabulated(metrics, {"item": [item.id for item, _ in pairs], **columns})

    def notes(self) -> Sequence[str]:
        """What differs from the published protocol."""
        return [
            f"100 x cosine; ± is the sample standard deviation over {len(self.recipe.seeds)} generation seeds",
            "reference: the subject's first picture; the paper names neither its reference nor what its ± is over",
        ]

    def _scorers(self) -> list[RewardScorer]:
        return [self._towers, *([self._against_all] if self._against_all is not None else [])]

    def _names(self) -> list[str]:
        extra = [f"{name}{ALL}" for name in self._against_all.entries] if self._against_all is not None else []
        return [*self.entries, *extra]

    def _pictures(self, item: Item) -> tuple[Path, ...]:
        return self.subjects[item.facts["subject"]].pictures

    def _row(self, scored: Scored, items: Sequence[Item]) -> dict[str, Value]:
        out: dict[str, Value] = {}
        for name in self._names():
            means_S = []
            for seed in scored.seeds:
                found = [scored.facts[item.id, seed] for item in items if (item.id, seed) in scored.facts]
                if found:
                    means_S.append(100 * _mean(found, name))
            out[name] = float(np.mean(means_S))
            out[f"{name} ±"] = float(np.std(means_S, ddof=1)) if len(means_S) > 1 else None
        return out


def entries_of(towers: Towers) -> dict[str, RewardEntry]:
    """The rewards behind the metrics' names."""
    checkpoints = {
        "DINOv1": ("dino", towers.dino),
        "DINOv1 S/16": ("dino", towers.dino_s16),
        "DINOv2": ("dinov2", towers.dinov2),
        "CLIP-I": ("clip_image", towers.clip),
        "CLIP-T": ("clip_text", towers.clip),
    }
    return {
        name: RewardEntry(use=use, options={"checkpoint": checkpoint})
        for name, (use, checkpoint) in checkpoints.items()
        if checkpoint is not None
    }


def _with_all(sample: Sample, pictures: Sequence[Path]) -> Sample:
    """The same sample with all pictures of its subject as references."""
    item = sample.item
    marks = " ".join(["<image>"] * len(pictures))
    references = tuple(partial(open_picture, file, upright=True) for file in pictures)
    return Sample(Item(item.id, f"{marks} x", references, item.subject, item.facts), sample.seed, sample.image)


def _joined(first: Facts | Unscored, second: Facts | Unscored) -> Facts | Unscored:
    if isinstance(first, Unscored):
        return first
    if isinstance(second, Unscored):
        return second
    return {**first, **{f"{name}{ALL}": value for name, value in second.items()}}


def _mean(found: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([facts[name] for facts in found]))
