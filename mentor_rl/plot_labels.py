"""Where the names of a scatter plot's points go, so that none lies on another. Geometry only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LETTER, LINE = 0.56, 1.15  # a letter's width and a line's height, in font sizes
DOT = 5.0  # half the side of what a point covers


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)

    def beyond(self, frame: Box) -> float:
        """Area outside of the frame."""
        own = (self.right - self.left) * (self.bottom - self.top)
        return own - self.overlap(frame)


class Placed(NamedTuple):
    """Left end of each text's line, and the area that texts share with others, with points or with what is outside."""

    places: list[tuple[float, float]]
    covered: float


def place_labels(points: Sequence[tuple[float, float]], texts: Sequence[str], size: float, frame: Box) -> Placed:
    """Texts beside their points in picture coordinates (y down): right, left, above, below, then at the corners.

    Crowded points come first; each text takes the first free place, or the one that covers least.
    """
    dots = [Box(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in points]
    crowd = [sum(abs(x - u) < 60 and abs(y - v) < 20 for u, v in points) for x, y in points]
    places: dict[int, tuple[float, float]] = {}
    taken, covered = list(dots), 0.0
    for i in sorted(range(len(points)), key=lambda each: -crowd[each]):
        others = [box for box in taken if box is not dots[i]]
        costs = []
        for box in _candidates(points[i], LETTER * size * len(texts[i]), LINE * size):
            costs.append((sum(map(box.overlap, others)) + box.beyond(frame), box))
            if costs[-1][0] == 0.0:
                break
        cost, box = min(costs, key=lambda each: each[0])
        taken.append(box)
        covered += cost
        places[i] = box.left, box.bottom - 0.25 * size
    return Placed([places[i] for i in range(len(points))], covered)


def _candidates(point: tuple[float, float], wide: float, high: float) -> list[Box]:
    x, y = point
    rights, lefts, middles = x + DOT + 1, x - DOT - 1 - wide, x - wide / 2
    ups, downs, levels = y - DOT - high, y + DOT, y - high / 2
    corners = [(rights, levels), (lefts, levels), (middles, ups), (middles, downs)]
    corners += [(side, level) for level in (ups + 2, downs - 2) for side in (rights - 4, lefts + 4)]
    return [Box(left, top, left + wide, top + high) for left, top in corners]
