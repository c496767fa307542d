"""Text-to-image rewards (HPSv2, PickScore, ImageReward, aesthetic, any other) on a file of prompts.

A number is the mean raw score of the pictures in the reward's own units, with the 95 % bootstrap interval over prompts.
Several prompt files (HPSv2's benchmark has one for each of its four styles) give one row each, and one of all prompts.

Deviation: HPSv2's own table multiplies its cosines by 100; these are the raw ones.

Shapes: I prompts, R rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mentor_rl.evaluate import bootstrap
from mentor_rl.evaluate.benchmark import Facts, Item, Sample, Scored, Tabulated, Unscored
from mentor_rl.evaluate.prompt_files import read_prompts
from mentor_rl.evaluate.recipes import T2IRewardsRecipe
from mentor_rl.evaluate.result import Value
from mentor_rl.evaluate.reward_scorer import RewardScorer


class T2IRewards:
    """See benchmark.Benchmark."""

    name = "t2i_rewards"
    floor: Facts | None = None  # rewards have units of their own, some below 0: no score is the worst one

    def __init__(self, recipe: T2IRewardsRecipe) -> None:
        given = recipe.prompts
        self.files = {"": Path(given)} if isinstance(given, str) else {name: Path(p) for name, p in given.items()}
        self._rewards = RewardScorer(recipe.rewards)
        self._read = {name: read_prompts(path) for name, path in self.files.items()}

    def items(self) -> Sequence[Item]:
        """One per prompt, in the order of the files."""
        return [
            Item(f"{name or 'prompt'}_{number:05d}", text, facts={"category": name})
            for name, texts in self._read.items()
            for number, text in enumerate(texts)
        ]

    def check(self) -> None:
        """All rewards."""
        self._rewards.check()

    def load(self, device: str) -> None:
        """All rewards."""
        self._rewards.load(device)

    def unload(self) -> None:
        """All rewards."""
        self._rewards.unload()

    @property
    def judge(self) -> str:
        """All rewards."""
        return self._rewards.judge

    @property
    def stand_in(self) -> bool:
        """With a plugin among the rewards."""
        return not self._rewards.all_built_in

    @property
    def prompts(self) -> str:
        """The files."""
        return ", ".join(f"{path} ({len(self._read[name])} prompts)" for name, path in self.files.items())

    def score(self, samples: Sequence[Sample]) -> list[Facts | Unscored]:
        """{reward: score} of each picture."""
        return self._rewards.score(samples)

    def tabulate(self, scored: Scored) -> Tabulated:
        """Means of each reward, of all prompts and by file."""
        pairs = scored.by_item()
        names = list(self._rewards.entries)
        table_IR = np.array([[_mean([facts[name] for facts in found]) for name in names] for _, found in pairs])
        categories = np.array([item.facts["category"] for item, _ in pairs])
        metrics = {"": _estimates(table_IR, names)}
        if len(self.files) > 1:
            metrics |= {
                name: _estimates(table_IR[categories == name], names) for name in self.files if name in categories
            }
        columns = {name: table_IR[:, i].round(6).tolist() for i, name in enumerate(names)}
        notes = inapplicable(metrics, {"": len(pairs), **{name: int(sum(categories == name)) for name in self.files}})
        return Tabulated(metrics, {"item": [item.id for item, _ in pairs], **columns}, notes)

    def notes(self) -> Sequence[str]:
        """Means, and what they are means of."""
        return ["means of raw scores, seeds averaged inside a prompt; 95 % bootstrap interval over prompts"]


def inapplicable(metrics: Mapping[str, Mapping[str, Value]], prompts: Mapping[str, int]) -> list[str]:
    """The rewards whose cells are empty, of all prompts or of a file; ``prompts``: how many each part has."""
    return [
        f"{name} applies to none of the {prompts[part]} prompts{f' of {part}' if part else ''}"
        for part, values in metrics.items()
        for name, value in values.items()
        if value is None and (not part or metrics[""][name] is not None)
    ]


def _mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else float("nan")


def _estimates(table_IR: np.ndarray, names: Sequence[str]) -> dict[str, Value]:
    out: dict[str, Value] = {}
    for column, name in enumerate(names):
        values_I1 = table_IR[~np.isnan(table_IR[:, column]), column : column + 1]
        out[name] = bootstrap.estimate(values_I1, lambda means: means[..., 0]) if len(values_I1) else None
    return out
