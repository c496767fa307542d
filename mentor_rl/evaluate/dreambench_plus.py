"""DreamBench++ (Peng et al., arXiv 2406.16855): concept preservation CP and prompt following PF by a judge.

A judge gives each picture whole numbers from 0 to 4 under the rubrics of rubrics.py, several passes over the same
pictures. CP and PF are sums over counts over 4, over all pictures (no mean of categories), per pass; the numbers are
their mean ± sample standard deviation over the passes. CP·PF is the product of the two overall means, CP/PF their ratio
(MENTOR, table 1).

Deviations from the published protocol:
- the rubrics' sentences are ours, and so is the form of the answer (JSON under a schema);
- two messages (instruction, sample) where published code has three, with an acknowledgement by the judge between;
- PNG where published code sends JPEG; both squash pictures to 512 x 512;
- an item belongs to the category its folder says, where published code searches its id for the category's name;
- a picture without a valid score is listed and stops the table (``incomplete: refuse``), where published code leaves
  it out of the count without a word.

The published judge is gpt-4o-2024-05-13. Numbers by any other one are marked as a stand-in's.

Shapes: P passes, I pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mentor_rewards.judge_request import Picture
from PIL import Image

from mentor_rl.evaluate.benchmark import Facts, Item, Sample, Scored, Tabulated, Unscored
from mentor_rl.evaluate.dreambench_plus_data import KINDS, REFERENCES, items_of, read_references
from mentor_rl.evaluate.judge_panel import Case, JudgePanel
from mentor_rl.evaluate.recipes import DreamBenchPlusRecipe
from mentor_rl.evaluate.result import Value
from mentor_rl.evaluate.rubrics import CONCEPT, FOLLOWING, HIGHEST, STYLE, Rubric

PUBLISHED_JUDGE = "gpt-4o-2024-05-13"
SIDE = 512


class DreamBenchPlus:
    """See benchmark.Benchmark. Facts of a picture: {"cp": [a score per pass], "pf": [...]}."""

    name = "dreambench_plus"

    def __init__(self, recipe: DreamBenchPlusRecipe) -> None:
        self.data, self.template = Path(recipe.data), recipe.template
        self.references = read_references(self.data)
        self.panel = JudgePanel(recipe.judge)
        self.floor: Facts | None = {"cp": [0] * recipe.judge.passes, "pf": [0] * recipe.judge.passes}

    def items(self) -> Sequence[Item]:
        """1,350: nine prompts for each reference."""
        return list(items_of(self.references, self.template))

    def check(self) -> None:
        """The judge."""
        self.panel.check()

    def load(self, device: str) -> None:
        """The judge."""
        self.panel.load(device)

    def unload(self) -> None:
        """The judge."""
        self.panel.unload()

    @property
    def judge(self) -> str:
        """The judge's model, and the rubrics' versions."""
        return self.panel.name((CONCEPT, STYLE, FOLLOWING))

    @property
    def stand_in(self) -> bool:
        """With another judge than the published one."""
        return self.panel.settings.stand_in or self.panel.settings.model != PUBLISHED_JUDGE

    @property
    def prompts(self) -> str:
        """The data set."""
        return f"DreamBench++, {len(self.references) * len(KINDS)} prompts, asked as '{self.template}'"

    def score(self, samples: Sequence[Sample]) -> list[Facts | Unscored]:
        """All passes of CP and PF of each picture."""
        shown: dict[str, Picture] = {}
        cases = [_case(sample, shown) for sample in samples]
        out: list[Facts | Unscored] = []
        for case, judged in zip(cases, self.panel.judge(cases), strict=True):
            if judged.reason is not None:
                out.append(Unscored(judged.reason))
            else:
                out.append({"cp": judged.scores[case.rubrics[0].name], "pf": judged.scores[FOLLOWING.name]})
        return out

    def tabulate(self, scored: Scored) -> Tabulated:
        """Overall, by category of the reference and by kind of prompt."""
        keys = [(item, seed) for item in scored.items for seed in scored.seeds if (item.id, seed) in scored.facts]
        found = [scored.facts[item.id, seed] for item, seed in keys]
        items = [item for item, _ in keys]
        cp_PI = np.array([facts["cp"] for facts in found], dtype=np.float64).T / HIGHEST
        pf_PI = np.array([facts["pf"] for facts in found], dtype=np.float64).T / HIGHEST
        metrics = {"": summary(cp_PI, pf_PI)}
        for key, names in (("category", tuple(REFERENCES)), ("kind", tuple(dict.fromkeys(KINDS)))):
            for name in names:
                rows = np.array([item.facts[key] == name for item in items])
                if rows.any():
                    part = f"{name} prompts" if key == "kind" else name
                    metrics[part] = summary(cp_PI[:, rows], pf_PI[:, rows])
        return Tabulated(
            metrics,
            {
                "item": [item.id for item in items],
                "seed": [str(seed) for _, seed in keys],
                "CP": cp_PI.mean(axis=0).round(5).tolist(),
                "PF": pf_PI.mean(axis=0).round(5).tolist(),
                "CP passes": [list(facts["cp"]) for facts in found],
                "PF passes": [list(facts["pf"]) for facts in found],
            },
        )

    def notes(self) -> Sequence[str]:
        """What differs from the published protocol."""
        return [
            f"mean and sample standard deviation over {self.panel.settings.passes} passes of the judge",
            "rubric text and answer form are this project's own; the published ones differ (see dreambench_plus.py)",
        ]


def summary(cp_PI: np.ndarray, pf_PI: np.ndarray) -> dict[str, Value]:
    """CP, PF (means over pictures, then mean and sample deviation over passes), their product and their ratio."""
    cp_P, pf_P = cp_PI.mean(axis=1), pf_PI.mean(axis=1)
    return {
        "CP": float(cp_P.mean()),
        "CP ±": spread(cp_P),
        "PF": float(pf_P.mean()),
        "PF ±": spread(pf_P),
        **balance(float(cp_P.mean()), float(pf_P.mean())),
    }


def balance(cp: float, pf: float) -> dict[str, Value]:
    """The product and the ratio of two overall means; no ratio where nothing follows its prompt."""
    return {"CP·PF": cp * pf, "CP/PF": cp / pf if pf else None}


def spread(values_P: np.ndarray) -> float | None:
    """Sample standard deviation; None for a single pass."""
    return float(values_P.std(ddof=1)) if len(values_P) > 1 else None


def _case(sample: Sample, shown: dict[str, Picture]) -> Case:
    """CP against the reference, PF against the prompt; a style is judged as a style."""
    facts = sample.item.facts
    concept: Rubric = STYLE if facts["category"] == "style" else CONCEPT
    where = sample.item.id.rsplit("_p", 1)[0]
    if where not in shown:
        shown[where] = _squashed(sample.item.references[0])
    return Case((concept, FOLLOWING), facts["prompt"], _squashed(lambda: sample.image), (shown[where],))


def _squashed(opened: Callable[[], Image.Image]) -> Picture:
    return Picture(opened().resize((SIDE, SIDE), Image.Resampling.BICUBIC))
