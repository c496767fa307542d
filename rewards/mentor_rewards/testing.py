"""Contract checks for reward authors: on the command line (``mentor rewards check NAME``), from Python, or in pytest.

    from mentor_rewards.testing import check_reward, sample_batch

    def test_contract():
        check_reward(lambda: Sharpness(step=2), sample_batch())

``testing_plugin`` makes one pytest test of every rule. The rules are in ``testing_rules``; sockets are blocked while
they are tried, unless the spec declares ``network``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, ImageDraw

from mentor_rewards.contract import RewardBatch
from mentor_rewards.testing_case import Blocked, Case, Factory, NotApplicable, Rule, raised
from mentor_rewards.testing_guards import blocked_network, is_blocked
from mentor_rewards.testing_rules import RULES

__all__ = [
    "RULES",
    "Case",
    "CheckResult",
    "ContractViolation",
    "Factory",
    "Rule",
    "check_reward",
    "run_checks",
    "sample_batch",
    "try_rule",
]


class ContractViolation(AssertionError):
    """A reward that breaks the contract; lists every broken rule."""


@dataclass(frozen=True)
class CheckResult:
    """What came of one rule.

    Attributes:
        outcome: "blocked": it could not be tried before another rule holds; "exempt": the spec declares an exception,
            or nothing to try.
        note: what was found, or why it was not tried; empty when the rule holds.
    """

    rule: Rule
    outcome: Literal["holds", "broken", "blocked", "exempt"]
    note: str = ""

    @property
    def problem(self) -> str | None:
        """What was found, when the rule is broken."""
        return self.note if self.outcome == "broken" else None

    def explanation(self) -> str:
        """The rule, what was found, and why it matters; one line each."""
        return f"{self.rule.name}: {self.rule.states}\n  found: {self.note}\n  why:   {self.rule.why}"


def check_reward(factory: Factory, batch: RewardBatch | None = None, tolerance: float = 1e-4) -> list[CheckResult]:
    """What came of every rule, those included from which the spec declares an exception; arguments as of run_checks.

    Raises:
        ContractViolation: a rule is broken, or could not be tried.
    """
    results = run_checks(factory, batch, tolerance)
    broken = [f"{result.rule.name}: {result.note}" for result in results if result.outcome in ("broken", "blocked")]
    if broken:
        raise ContractViolation("\n".join(broken))
    return results


def run_checks(factory: Factory, batch: RewardBatch | None = None, tolerance: float = 1e-4) -> list[CheckResult]:
    """All rules on one reward, on the CPU in float32.

    Args:
        factory: builds the reward, unloaded, e.g. ``lambda: MyReward(option=1)``.
        batch: at least 3 pictures that the reward can score; default: sample_batch().
        tolerance: largest difference between scores that should be equal, relative to the larger of 1 and the score.
    """
    case = Case(factory, sample_batch() if batch is None else batch, tolerance)
    try:
        return [try_rule(rule, case) for rule in RULES]
    finally:
        case.close()


def try_rule(rule: Rule, case: Case) -> CheckResult:
    """One rule on its own."""
    try:
        with nullcontext() if case.declares_network() else blocked_network():
            case.require(rule)
            problem = rule.check(case)
    except NotApplicable as error:
        return CheckResult(rule, "exempt", str(error))
    except Blocked as error:
        return CheckResult(rule, "blocked", str(error))
    except Exception as error:  # whatever an author's code raises is a finding
        if is_blocked(error) and rule.name != "network":
            return CheckResult(rule, "blocked", "'network' has to hold first")
        return CheckResult(rule, "broken", raised(error))
    return CheckResult(rule, "holds") if problem is None else CheckResult(rule, "broken", problem)


def sample_batch(
    metadata: Sequence[Mapping[str, Any]] | None = None, size: int = 64, count: int = 6, seed: int = 0
) -> RewardBatch:
    """Simple drawn pictures with prompts, references and subjects, in groups of two; the same for the same arguments.

    Args:
        metadata: facts of the prompts, repeated as often as needed; default: what is drawn, ``background`` and
            ``objects``.
        size: side in pixels.
    """
    rng = random.Random(seed)
    colours = ("red", "blue", "yellow", "white", "black", "green")
    images, references = [], []
    drawn: list[Mapping[str, Any]] = []
    for n in range(count):
        ground, ink = colours[n % 6], colours[(n + 2) % 6]
        images.append(_drawing(rng, size, ground, ink))
        drawn.append({"background": ground, "objects": [{"shape": "circle", "colour": ink}]})
        if n % 2 == 0:
            references.append(_drawing(rng, size, "white", ink))
    facts = metadata or drawn
    return RewardBatch(
        images=images,
        prompts=[f"a {colours[(n // 2 * 2 + 2) % 6]} disc" for n in range(count)],
        references=[(references[n // 2],) for n in range(count)],
        subjects=["disc"] * count,
        group_ids=[n // 2 for n in range(count)],
        metadata=[facts[n % len(facts)] for n in range(count)],
    )


def _drawing(rng: random.Random, size: int, ground: str, ink: str) -> Image.Image:
    image = Image.new("RGB", (size, size), ground)
    side = rng.randint(size // 4, size // 2)
    left, top = rng.randint(0, size - side), rng.randint(0, size - side)
    ImageDraw.Draw(image).ellipse((left, top, left + side, top + side), fill=ink)
    return image
