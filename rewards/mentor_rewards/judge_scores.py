"""From a judge's answer to a score: strict parsing, then the caps and sums of the paper in code (appendix B.4).

    text to image: A..D in [0, 1];                    any <= 0.3                          -> at most 1
    subject:       A in [0, .6], B [0, 3.2], C [0, 1.2];  A <= .1 or B <= .3 or C <= .3   -> at most 1
    score = min(sum, cap), rounded to two digits

Nothing is repaired: an answer outside of the schema is rejected, since a server that let one pass may not have
constrained anything. The one leniency is raw control characters inside strings, which xgrammar lets through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from mentor_rewards.judge_prompts import DESCRIPTION_LENGTH, JudgeTemplate

TOLERANCE = 1e-6  # grammars print 0.4 as 0.40000000000000002, and 0.1 + 0.2 misses 0.3
CAP = 1.0
SHOWN = 80  # characters of a rejected answer that a reason quotes


class InvalidAnswer(Exception):
    """An answer that cannot be used, with the reason; asking again may help."""


@dataclass(frozen=True)
class Judgement:
    """One picture's scores.

    Attributes:
        parts: sub-scores by axis, within their ranges.
        score: capped sum, rounded to two digits.
        disagreement: |the model's own final - score|: a health metric of the judge.
    """

    description: str
    parts: dict[str, float]
    score: float
    disagreement: float


def parse_answer(text: str, finish_reason: str | None, template: JudgeTemplate) -> Judgement:
    """The judgement in a raw answer.

    Raises:
        InvalidAnswer: cut off, not JSON, keys missing, doubled or unknown, a number that is none or out of range.
    """
    if finish_reason == "length":
        raise InvalidAnswer(f"cut off at max_tokens after {len(text)} characters")
    values = read_object(text)
    check_keys(values, ["description", *(axis.key for axis in template.axes), "final"])
    description = values["description"]
    if not isinstance(description, str) or len(description) > DESCRIPTION_LENGTH:
        raise InvalidAnswer(
            f"description: expected at most {DESCRIPTION_LENGTH} characters, found {_shown(description)}"
        )
    parts = {axis.key: _number(axis.key, values[axis.key], axis.high) for axis in template.axes}
    score = final_score(parts, template)
    return Judgement(description, parts, score, abs(_number("final", values["final"], template.maximum) - score))


def final_score(parts: dict[str, float], template: JudgeTemplate) -> float:
    """Sum of the sub-scores, at most 1 when one of them reaches down to its limit; two digits."""
    total = math.fsum(parts.values())
    capped = any(parts[axis.key] <= axis.cap_at + TOLERANCE for axis in template.axes)
    return round(min(total, CAP) if capped else total, 2)


def read_object(text: str) -> dict[str, Any]:
    """The JSON object that an answer is.

    Raises:
        InvalidAnswer: anything else, also one with doubled keys or numbers that are none.
    """
    try:
        values = json.loads(text, strict=False, object_pairs_hook=_no_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of thousands of digits
        raise InvalidAnswer(f"not JSON: {_shown(text)} ({error})") from error
    if not isinstance(values, dict):
        raise InvalidAnswer(f"expected a JSON object, found {_shown(values)}")
    return values


def _no_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise InvalidAnswer(f"doubled keys: {_shown(', '.join(key for key, _ in pairs))}")
    return values


def _no_constant(name: str) -> NoReturn:
    raise InvalidAnswer(f"not a number: {name}")


def check_keys(values: dict[str, Any], expected: Sequence[str]) -> None:
    """
    Raises:
        InvalidAnswer: a key is missing or unknown.
    """
    missing = [key for key in expected if key not in values]
    unknown = [key for key in values if key not in expected]
    if missing or unknown:
        raise InvalidAnswer(f"expected the keys {', '.join(expected)}, found {_shown(', '.join(values))}")


def _number(key: str, value: Any, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidAnswer(f"{key}: expected a number, found {_shown(value)}")
    if not -TOLERANCE <= value <= high + TOLERANCE:
        raise InvalidAnswer(f"{key}: expected 0 to {high:g}, found {_shown(value)}")
    return min(max(float(value), 0.0), high)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"
