"""Coloured shapes whose number, colour and place can be read back exactly from the pixels.

Shapes are flat (one colour, anti-aliased edges of about one pixel), lie wholly inside the picture and keep GAP pixels
from each other. What a picture shows and what its caption claims are the same facts (``Group``), so a reward or a test
can check: the pixels of exactly a claimed colour (mixed ones are edges), as 8-connected components of 20 pixels or more
(smaller ones are tips), are its shapes: their number, their centres, and (up to rasterisation) their form.

Places are thirds of the picture: "top left" means that the centre of the shape's bounding box lies in the left and the
upper third (POSITIONS). A relation ("left of", "above") compares bounding-box centres: along the named axis they differ
by a shape's side and GAP pixels at least.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "gray": (150, 150, 150),
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 160, 70),
    "cyan": (60, 200, 215),
    "blue": (50, 100, 220),
    "purple": (130, 60, 180),
    "pink": (245, 150, 190),
    "brown": (125, 80, 45),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "star", "heart", "ring")
SHAPE_COLOURS: tuple[str, ...] = tuple(name for name in COLOURS if name != "white")
NUMBERS: dict[int, str] = {1: "a", 2: "two", 3: "three", 4: "four"}
# name -> (column, row), each a third of the picture: 0 left / top, 1 middle, 2 right / bottom
POSITIONS: dict[str, tuple[int, int]] = {
    "top left": (0, 0), "top": (1, 0), "top right": (2, 0),
    "left": (0, 1), "center": (1, 1), "right": (2, 1),
    "bottom left": (0, 2), "bottom": (1, 2), "bottom right": (2, 2),
}  # fmt: skip
RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
GAP = 3
HELD_OUT_SHARE = 150  # of a thousand (shape, colour) pairs, never drawn in train and val
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Group:
    """``count`` equal shapes of one colour; ``position`` (a key of POSITIONS) only where the caption names it."""

    shape: str
    colour: str
    count: int = 1
    position: str | None = None

    def words(self) -> str:
        """ "a red circle", "two red circles"."""
        if self.count > 1:
            return f"{NUMBERS[self.count]} {self.colour} {self.shape}s"
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.shape}"

    def facts(self) -> dict[str, Any]:
        """The entry of ``meta["objects"]``."""
        return {
            "shape": self.shape,
            "colour": self.colour,
            "rgb": COLOURS[self.colour],
            "count": self.count,
            "position": self.position,
        }


@cache
def held_out(shape: str, colour: str) -> bool:
    """Whether this pair belongs to the unseen splits."""
    digest = hashlib.sha256(f"shape:{shape}:{colour}".encode()).hexdigest()
    return int(digest, 16) % 1000 < HELD_OUT_SHARE


@cache
def shape_pairs(unseen: bool) -> tuple[tuple[str, str], ...]:
    """All (shape, colour) of the unseen splits, or of train and val."""
    return tuple((s, c) for s in SHAPES for c in SHAPE_COLOURS if held_out(s, c) == unseen)


@lru_cache(maxsize=512)
def stencil(shape: str, side: int) -> np.ndarray:
    """Coverage of one shape, uint8 [side, side], touching the sides of its square; read-only."""
    big = side * _OVERSAMPLING
    canvas = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(canvas)
    last = big - 1
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, last, last), fill=255)
        if shape == "ring":
            inner = round(big * 0.24)
            draw.ellipse((inner, inner, last - inner, last - inner), fill=0)
    elif shape == "square":
        inset = round(big * 0.06)
        draw.rectangle((inset, inset, last - inset, last - inset), fill=255)
    else:
        draw.polygon([(x * last, y * last) for x, y in _outline(shape)], fill=255)
    array = np.asarray(canvas.reduce(_OVERSAMPLING))
    array.setflags(write=False)
    return array


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners in the unit square."""
    if shape == "triangle":
        return [(0.5, 0.04), (1.0, 0.94), (0.0, 0.94)]
    if shape == "diamond":
        return [(0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)]
    if shape == "star":
        radii = (0.53, 0.235)
        angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
        return [(0.5 + radii[k % 2] * math.cos(a), 0.53 + radii[k % 2] * math.sin(a)) for k, a in enumerate(angles)]
    if shape == "heart":
        turns = [2 * math.pi * k / 60 for k in range(60)]
        curve = [
            (16 * math.sin(t) ** 3, 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
            for t in turns
        ]
        return [(0.5 + x / 33, 0.47 - y / 33) for x, y in curve]
    raise ValueError(f"unknown shape {shape!r}")


@dataclass(frozen=True)
class ShapeScene:
    """What a picture of shapes shows.

    Attributes:
        groups: one group, or two that ``relation`` connects.
        background: a key of COLOURS.
        relation: "left of", "right of", "above" or "below" from groups[0] to groups[1]; None for one group.
    """

    groups: tuple[Group, ...]
    background: str = "white"
    relation: str | None = None

    def words(self) -> str:
        """The caption: "a green square left of a yellow ring on a blue background"."""
        text = self.groups[0].words()
        if self.relation is not None:
            text += f" {self.relation} {self.groups[1].words()}"
        elif self.groups[0].position is not None:
            text += f" {place_words(self.groups[0].position)}"
        return text + background_words(self.background)

    def facts(self) -> dict[str, Any]:
        """Entries of Example.meta; see emoji.py for their meaning."""
        facts: dict[str, Any] = {"objects": [group.facts() for group in self.groups]}
        if self.relation is not None:
            facts["relation"] = self.relation
        else:
            group = self.groups[0]
            facts |= {"shape": group.shape, "colour": group.colour, "count": group.count}
            if group.position is not None:
                facts["position"] = group.position
        return facts


def place_words(position: str) -> str:
    """ "in the top left", "at the bottom", "on the right", "in the center"."""
    preposition = {"top": "at", "bottom": "at", "left": "on", "right": "on"}.get(position, "in")
    return f"{preposition} the {position}"


def background_words(background: str) -> str:
    """The end of a caption: nothing for white."""
    if background == "white":
        return ""
    return f" on {'an' if background[0] in 'aeiou' else 'a'} {background} background"


def random_scene(rng: Random, unseen: bool) -> ShapeScene:
    """A scene of one of four kinds: one shape, one at a named place, two to four equal ones, two in a relation."""
    pairs = shape_pairs(unseen)
    background = "white" if rng.random() < 0.55 else rng.choice(tuple(COLOURS))
    usable = [pair for pair in pairs if distinct(pair[1], background)]
    kind = rng.choices(("single", "place", "count", "relation"), (30, 25, 25, 20))[0]
    shape, colour = rng.choice(usable)
    if kind == "relation":
        others = [pair for pair in usable if distinct(pair[1], colour)]
        other = rng.choice(others)
        return ShapeScene((Group(shape, colour), Group(*other)), background, rng.choice(tuple(RELATIONS)))
    count = rng.choice((2, 3, 4)) if kind == "count" else 1
    position = rng.choice(tuple(POSITIONS)) if kind == "place" else None
    return ShapeScene((Group(shape, colour, count, position),), background)


@cache
def distinct(colour: str, other: str) -> bool:
    """Whether two named colours are far enough apart to be told from pixels, anti-aliased edges included."""
    return math.dist(COLOURS[colour], COLOURS[other]) >= 90


def draw_scene(scene: ShapeScene, rng: Random, size: int = 64) -> Image.Image:
    """The picture of a scene, PIL RGB; sizes and places that the caption leaves open are drawn from ``rng``."""
    canvas = np.empty((size, size, 3), dtype=np.uint8)
    canvas[:] = COLOURS[scene.background]
    for group, box in _layout(scene, rng, size):
        left, top, side = box
        cover = stencil(group.shape, side)[:, :, None].astype(np.uint16)
        patch = canvas[top : top + side, left : left + side]
        ink = np.asarray(COLOURS[group.colour], dtype=np.uint16)
        patch[:] = ((patch * (255 - cover) + ink * cover + 127) // 255).astype(np.uint8)
    return Image.fromarray(canvas)


Box = tuple[int, int, int]  # left, top, side


def _layout(scene: ShapeScene, rng: Random, size: int) -> list[tuple[Group, Box]]:
    if scene.relation is not None:
        return _related(scene, rng, size)
    group = scene.groups[0]
    if group.position is not None:
        return [(group, _in_third(POSITIONS[group.position], rng, size))]
    if group.count == 1:
        side = rng.randint(24, 44)
        return [(group, (rng.randint(2, size - 2 - side), rng.randint(2, size - 2 - side), side))]
    side = rng.randint(17, 24) if group.count == 2 else rng.randint(16, 20)
    return [(group, box) for box in _apart(group.count, side, rng, size)]


def _in_third(third: Sequence[int], rng: Random, size: int) -> Box:
    """A box whose centre is well inside a third: at 64 pixels within 3 pixels of 14, 32 or 50."""
    side = rng.randint(9, 12) * 2
    centres = [(14, 32, 50)[k] * size // 64 + rng.randint(-2 if k != 1 else -3, 2 if k != 1 else 3) for k in third]
    left, top = (min(max(centre - side // 2, 1), size - 1 - side) for centre in centres)
    return left, top, side


def _apart(count: int, side: int, rng: Random, size: int) -> list[Box]:
    """Boxes with GAP pixels between them, by rejection; restarts when a first box leaves no room."""
    while True:
        boxes: list[Box] = []
        for _ in range(count * 12):
            box = (rng.randint(1, size - 1 - side), rng.randint(1, size - 1 - side), side)
            if all(max(abs(box[0] - other[0]), abs(box[1] - other[1])) >= side + GAP for other in boxes):
                boxes.append(box)
                if len(boxes) == count:
                    return boxes


def _related(scene: ShapeScene, rng: Random, size: int) -> list[tuple[Group, Box]]:
    """Two boxes side by side along the relation's axis, with some play across it."""
    dx, dy = RELATIONS[scene.relation or ""]
    side = rng.randint(19, 24)
    across = [rng.randint(2, size - 2 - side)] * 2
    across[1] = min(max(across[0] + rng.randint(-8, 8), 2), size - 2 - side)
    first = rng.randint(1, (size - GAP) // 2 - side)
    second = rng.randint((size + GAP + 1) // 2, size - 1 - side)
    along = (first, second) if dx + dy < 0 else (second, first)
    boxes = [(a, c, side) if dx else (c, a, side) for a, c in zip(along, across, strict=True)]
    return list(zip(scene.groups, boxes, strict=True))
