"""What the monitors saw, and of what prompts, in plain words: for the report and the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mentor_rl.monitors.copying import HONEST
from mentor_rl.monitors.hacking import PREFIX, threshold

Points = Sequence[tuple[float, float]]  # (step, value), ascending steps
FIXED = {  # by monitoring.split
    "train": "Fixed prompts of the training split",
    "val": "Fixed prompts of the validation split",
    "unseen_subjects": "Fixed prompts about subjects that training never saw",
    "unseen_pairs": "Fixed prompts that ask for subjects in styles in which training never saw them",
}
ENDS = 0.1  # share of a run's points that its beginning and its end are the means of


@dataclass(frozen=True)
class Sign:
    """One sentence; ``alarm`` is the step at which it became bad news, None where it is none."""

    text: str
    alarm: float | None = None


def fixed_prompts(recipe: Mapping[str, Any]) -> str:
    """Which prompts the fixed ones of a resolved recipe are."""
    return FIXED.get(recipe.get("monitoring", {}).get("split"), "Fixed prompts")


def signs(metrics: Mapping[str, Points], recipe: Mapping[str, Any]) -> list[Sign]:
    """What the monitors of a GRPO run say, from its metrics and its resolved recipe; empty for other runs."""
    if recipe.get("kind") != "grpo":
        return []
    return [*_hacking(metrics, recipe), *_copies(metrics), *_diversity(metrics)]


def _hacking(metrics: Mapping[str, Points], recipe: Mapping[str, Any]) -> list[Sign]:
    held_out = [name for name, entry in recipe.get("rewards", {}).items() if entry.get("role") == "monitor"]
    if not held_out:
        return [Sign("No held-out reward (role: monitor): whether the rewards are being exploited was not watched.")]
    found = {name: metrics[PREFIX + name] for name in held_out if PREFIX + name in metrics}
    if not found:
        return []
    window, significance = (recipe["monitoring"][key] for key in ("window", "significance"))
    limit = threshold(significance)
    alarms = []
    for name, points in found.items():
        above = [step for step, value in points if value > limit]
        if above:
            alarms.append(
                Sign(
                    f"Alarm at step {above[0]:.0f}: over the {window} steps before it the trained rewards rose while "
                    f"the held-out '{name}' got worse, each beyond chance (p < {significance:g}); so it was in "
                    f"{len(above)} of {len(points)} windows. The policy may be exploiting its rewards.",
                    above[0],
                )
            )
    quiet = ", ".join(f"'{name}'" for name in found)
    return alarms or [Sign(f"No alarm: in no {window} steps did the trained rewards rise while {quiet} got worse.")]


def _copies(metrics: Mapping[str, Points]) -> list[Sign]:
    if "copies/share" not in metrics:
        return []
    first, last = _ends(metrics["copies/share"])
    return [
        Sign(
            f"Copies: {first:.0%} of the pictures at first and {last:.0%} at last were more like their reference than "
            f"{1 - HONEST:.0%} of the data's own answers, of which {HONEST:.0%} are."
        )
    ]


def _diversity(metrics: Mapping[str, Points]) -> list[Sign]:
    if "diversity" not in metrics:
        return []
    first, last = _ends(metrics["diversity"])
    text = f"Diversity: two pictures of one prompt differed in {first:.0%} of their tokens at first, {last:.0%} at last"
    if "diversity_pixels" in metrics:
        first, last = _ends(metrics["diversity_pixels"])
        text += f"; their pixels lay {first:.3f} apart at first, {last:.3f} at last (root mean square, of 1)"
    return [Sign(text + ".")]


def _ends(points: Points) -> tuple[float, float]:
    count = max(1, round(ENDS * len(points)))
    first, last = (sum(value for _, value in end) / count for end in (points[:count], points[-count:]))
    return first, last
