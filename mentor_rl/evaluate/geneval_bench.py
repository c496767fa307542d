"""GenEval as a benchmark of ``mentor evaluate``: prompts, detector, colours and rules put together.

A picture's facts are its verdict and the reasons for it. Accuracies are shares of pictures; their 95 % intervals come
from drawing prompts anew within each tag, since the four pictures of a prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mentor_rl.evaluate import bootstrap
from mentor_rl.evaluate.benchmark import Facts, Item, Sample, Scored, Tabulated, Unscored
from mentor_rl.evaluate.geneval import TAGS, GenEvalPrompt, judge, overall, read_prompts
from mentor_rl.evaluate.geneval_colours import ClipColours, ColourNamer, find_colours
from mentor_rl.evaluate.geneval_detector import Detector, Mask2FormerDetector, find_detector
from mentor_rl.evaluate.recipes import GenEvalRecipe
from mentor_rl.evaluate.result import Value

LABEL = "GenEval-HF"
WRONG: Facts = {"correct": False}


class GenEval:
    """See benchmark.Benchmark.

    Args:
        detector, colours: instead of the recipe's.

    Raises:
        UserError: no prompts.
    """

    name = "geneval"
    floor: Facts | None = WRONG

    def __init__(
        self, recipe: GenEvalRecipe, detector: Detector | None = None, colours: ColourNamer | None = None
    ) -> None:
        self.recipe, self.detector, self.colours = recipe, detector, colours
        self._asked = {f"{prompt.number:05d}": prompt for prompt in read_prompts(recipe.data)}

    def items(self) -> Sequence[Item]:
        """One per prompt."""
        return [Item(key, prompt.text, facts={"tag": prompt.tag}) for key, prompt in self._asked.items()]

    def check(self) -> None:
        """The files of both networks."""
        if self.detector is None:
            find_detector(self.recipe.detector)
        if self.colours is None:
            find_colours(self.recipe.colours)

    def load(self, device: str) -> None:
        """Read both networks."""
        self.detector = self.detector or Mask2FormerDetector(self.recipe.detector, device)
        self.colours = self.colours or ClipColours(self.recipe.colours, device)

    def unload(self) -> None:
        """Nothing that outlives this object."""

    @property
    def judge(self) -> str:
        """Detector and colour namer."""
        detector, colours = self._networks()
        return f"{LABEL}: {detector.name}; {colours.name}"

    @property
    def stand_in(self) -> bool:
        """With networks of another size than the published ones."""
        return any(network.stand_in for network in self._networks())

    @property
    def prompts(self) -> str:
        """How many."""
        return f"GenEval ({len(self._asked)} prompts)"

    def score(self, samples: Sequence[Sample]) -> list[Facts | Unscored]:
        """A verdict on each picture."""
        return [self._verdict(sample) for sample in samples]

    def tabulate(self, scored: Scored) -> Tabulated:
        """Accuracy per tag and overall."""
        items = [(item, [bool(fact["correct"]) for fact in facts]) for item, facts in scored.by_item()]
        tags, shares = [item.facts["tag"] for item, _ in items], [float(np.mean(right)) for _, right in items]
        per_item = {"item": [item.id for item, _ in items], "tag": tags, "correct": shares}
        return Tabulated({"": accuracies(tags, shares)}, per_item)

    def notes(self) -> Sequence[str]:
        """Whose detector it is."""
        return (
            f"{LABEL}: Mask2Former with FAIR's weights in transformers; published GenEval numbers come from mmdet's "
            "weights of the same architecture, and how often the two agree is not known",
        )

    def _verdict(self, sample: Sample) -> Facts:
        detector, colours = self._networks()
        prompt: GenEvalPrompt = self._asked[sample.item.id]
        found = detector(sample.image)
        verdict = judge(prompt, found, lambda objects, name: colours(sample.image, objects, name))
        return {"correct": verdict.correct, "reasons": list(verdict.reasons)}

    def _networks(self) -> tuple[Detector, ColourNamer]:
        if self.detector is None or self.colours is None:
            raise ValueError("score before load")
        return self.detector, self.colours


def accuracies(tags: Sequence[str], shares: Sequence[float]) -> dict[str, Value]:
    """[value, low, high] of the overall accuracy and of each tag that occurs.

    Args:
        shares: of right pictures, per prompt.
    """
    by_tag = {
        tag: np.array([share for each, share in zip(tags, shares, strict=True) if each == tag]) for tag in TAGS
    }  # fmt: skip
    means = {tag: float(values.mean()) for tag, values in by_tag.items() if len(values)}
    draws = {
        tag: bootstrap.resampled_means(values[:, None], seed=bootstrap.SEED + TAGS.index(tag))[:, 0]
        for tag, values in by_tag.items()
        if len(values)
    }
    rows: dict[str, Value] = {"overall": overall(means)}
    if len(draws) == len(TAGS):
        rows["overall"] = [overall(means), *bootstrap.interval(np.mean(list(draws.values()), axis=0))]
    return rows | {tag: [mean, *bootstrap.interval(draws[tag])] for tag, mean in means.items()}
