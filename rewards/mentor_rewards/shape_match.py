"""Do the coloured shapes of a picture have the number, colour, place and form that the prompt names?

Exact on pictures of flat shapes (blobs.py reads them back), so a policy's progress there needs no learned judge.
Each expected object is matched with one blob; the score is the mean of up to five checks, each in [0, 1]:
count (blobs on the ground against objects asked for), colour, shape, position (thirds of the picture, where named) and
relation ("left of", "right of", "above", "below", where named).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mentor_rewards.blobs import SHAPES, Blob, find_blobs, form_likeness
from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardOutput, RewardSpec, nearest
from mentor_rewards.palette import COLOURS, RGB, oklab

POSITIONS: dict[str, tuple[int, int]] = {
    f"{row} {column}".strip() or "center": (x, y)
    for y, row in enumerate(("top", "", "bottom"))
    for x, column in enumerate(("left", "", "right"))
}
RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
CHECKS = ("count", "colour", "shape", "position", "relation")
_COLOUR_TOLERANCE = 0.12  # OKLab distance at which a colour is worth 1/e
_RELATION_GAP = 0.25  # distance of centres, as a share of the side, at which a relation holds fully
_FALL_OFF = 0.12  # distance from the named third, as a share of the side, at which a position is worth 1/e


@dataclass(frozen=True)
class _Wanted:
    """One expected object."""

    shape: str
    colour: str
    position: str | None


class ShapeMatch(Reward):
    """Mean of the checks count, colour, shape, position and relation against metadata["objects"], in [0, 1].

    metadata["objects"] is a list of {"shape", "colour", "count", "position"} (count 1 and no position by default),
    metadata["relation"], where there is one, holds from the first to the second. Details: one list per check.
    """

    spec = RewardSpec(
        name="shape_match",
        version="1",
        metadata=frozenset({"objects"}),
        range=(0.0, 1.0),
        probes=frozenset({"noise", "prompt"}),
        licence="Apache-2.0",
    )

    def __init__(self, palette: Mapping[str, RGB] | None = None, min_area: int = 24) -> None:
        """
        Args:
            palette: colour names -> sRGB of objects and grounds; default: the emoji world's.
            min_area: smallest object in pixels of a picture scaled to 64 x 64.
        """
        self.palette = dict(palette or COLOURS)
        self.min_area = min_area

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One score per picture; None where the facts name an unknown shape, colour, position or relation."""
        scores: list[float | None] = []
        reasons: list[str | None] = []
        details: dict[str, list[Any]] = {check: [] for check in CHECKS}
        for image, facts in zip(batch.images, batch.metadata, strict=True):
            try:
                wanted, relation = self._wanted(facts)
            except RewardError as error:
                checks: dict[str, float] = {}
                reasons.append(str(error))
            else:
                _, blobs = find_blobs(image, self.palette, self.min_area)
                checks = self._checks(wanted, relation, blobs)
                reasons.append(None)
            scores.append(sum(checks.values()) / len(checks) if checks else None)
            for check in CHECKS:
                details[check].append(checks.get(check))
        return RewardOutput(scores, reasons, details)

    def _wanted(self, facts: Mapping[str, Any]) -> tuple[list[_Wanted], str | None]:
        """Every expected object, and the relation; RewardError for what the tables do not know."""
        wanted: list[_Wanted] = []
        for thing in facts.get("objects") or ():
            _known("shape", thing["shape"], SHAPES)
            _known("colour", thing["colour"], self.palette)
            position = thing.get("position")
            if position is not None:
                _known("position", position, POSITIONS)
            wanted += [_Wanted(thing["shape"], thing["colour"], position)] * int(thing.get("count") or 1)
        if not wanted:
            raise RewardError("no objects")
        relation = facts.get("relation")
        if relation is not None:
            _known("relation", relation, RELATIONS)
            if len(wanted) != 2:
                raise RewardError(f"a relation needs two objects, found {len(wanted)}")
        return wanted, relation

    def _checks(self, wanted: Sequence[_Wanted], relation: str | None, blobs: Sequence[Blob]) -> dict[str, float]:
        colour_WB = np.array([[self._colour(want, blob) for blob in blobs] for want in wanted])
        forms = [form_likeness(blob.mask) for blob in blobs]
        shape_WB = np.array([[form[want.shape] for form in forms] for want in wanted])
        place_WB = np.array([[_place(want.position, blob) for blob in blobs] for want in wanted])
        pairs = _match(colour_WB + shape_WB + 0.5 * place_WB)
        placed = [w for w, want in enumerate(wanted) if want.position is not None]
        checks = {
            "count": 1 - abs(len(blobs) - len(wanted)) / max(len(blobs), len(wanted)),
            "colour": sum(colour_WB[w, b] for w, b in pairs.items()) / len(wanted),
            "shape": sum(shape_WB[w, b] for w, b in pairs.items()) / len(wanted),
        }
        if placed:
            checks["position"] = sum(place_WB[w, pairs[w]] for w in placed if w in pairs) / len(placed)
        if relation is not None:
            both = len(pairs) == 2
            checks["relation"] = _relation(relation, blobs[pairs[0]], blobs[pairs[1]]) if both else 0.0
        return {check: float(value) for check, value in checks.items()}

    def _colour(self, want: _Wanted, blob: Blob) -> float:
        one, two = oklab(np.array([self.palette[want.colour], self.palette[blob.colour]]) / 255)
        return math.exp(-((float(np.linalg.norm(one - two)) / _COLOUR_TOLERANCE) ** 2))


def _known(what: str, value: Any, table: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in table:
        raise RewardError(f"unknown {what} {value!r}; {nearest(str(value), table)}")


def _match(likeness_WB: np.ndarray) -> dict[int, int]:
    """Wanted object -> blob, the likeliest pair first; objects or blobs may be left over."""
    pairs: dict[int, int] = {}
    if likeness_WB.size == 0:
        return pairs
    for flat in np.argsort(-likeness_WB, axis=None, kind="stable"):
        w, b = (int(index) for index in np.unravel_index(flat, likeness_WB.shape))
        if w not in pairs and b not in pairs.values():
            pairs[w] = b
    return pairs


def _place(position: str | None, blob: Blob) -> float:
    """1 inside the named third of the picture, falling off with the distance from it; 1 where none is named."""
    if position is None:
        return 1.0
    distance = math.hypot(
        *(
            max(third / 3 - centre, centre - (third + 1) / 3, 0.0)
            for third, centre in zip(POSITIONS[position], blob.centre, strict=True)
        )
    )
    return math.exp(-((distance / _FALL_OFF) ** 2))


def _relation(relation: str, first: Blob, second: Blob) -> float:
    """0 for the opposite or no difference along the axis, 1 from a clear one on."""
    dx, dy = RELATIONS[relation]
    along = dx * (first.centre[0] - second.centre[0]) + dy * (first.centre[1] - second.centre[1])
    return min(max(along / _RELATION_GAP, 0.0), 1.0)
