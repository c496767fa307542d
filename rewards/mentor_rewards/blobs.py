"""Flat coloured shapes read back from pixels: which blobs of which palette colour lie where, and what form they have.

Anti-aliased edges mix two colours and can come near a third (red on white gives pink): pixels are therefore assigned
twice, first to the whole palette, then only to the colours that have a solid blob.

Shapes: H rows, W columns, K palette colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from mentor_rewards.palette import RGB, oklab
from mentor_rewards.pixels import squares

SIDE = 64  # pixels at which pictures are read
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "ring")
_TEMPLATE = 24
_SHARPNESS = 0.04  # difference of overlaps at which one form is e times as likely as another
_FULL_OVERLAP = 0.82  # overlap with the right template from which rasterisation explains the rest


@dataclass(frozen=True)
class Blob:
    """One connected patch of one colour.

    Attributes:
        colour: its name in the palette.
        centre: (column, row) of the bounding box's middle, as shares of the side.
        mask: the patch inside its bounding box, bool [h, w].
    """

    colour: str
    centre: tuple[float, float]
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.mask.sum())


def find_blobs(image: Image.Image, palette: Mapping[str, RGB], min_area: int = 24) -> tuple[str, list[Blob]]:
    """The ground's colour name (the commonest along the border) and the blobs on it, largest first.

    Args:
        min_area: in pixels of a picture scaled to 64 x 64; smaller patches and lines one pixel wide are no blobs.
    """
    names = list(palette)
    lab_HW3 = oklab(squares([image], SIDE, Image.Resampling.BOX)[0])
    table_K3 = oklab(np.array([palette[name] for name in names]) / 255)
    squared_HWK = (table_K3**2).sum(-1) - 2 * lab_HW3 @ table_K3.T  # less the pixel's own square, the same for all K
    first_HW = squared_HWK.argmin(-1)
    ground = int(np.bincount(_border(first_HW), minlength=len(names)).argmax())
    solid = {ground} | {int(first_HW[patch[0][0], patch[1][0]]) for patch in _patches(first_HW, min_area)}
    absent = [k for k in range(len(names)) if k not in solid]
    squared_HWK[:, :, absent] = np.inf
    second_HW = squared_HWK.argmin(-1)
    blobs = []
    for rows, columns in _patches(second_HW, min_area):
        kind = int(second_HW[rows[0], columns[0]])
        if kind != ground:
            blobs.append(_blob(names[kind], rows, columns))
    return names[ground], sorted(blobs, key=lambda blob: -blob.area)


def form_likeness(mask: np.ndarray) -> dict[str, float]:
    """How much a patch has each form of SHAPES rather than another, each in [0, 1].

    Intersection over union with each form's template inside the bounding box, sharpened by a softmax over the forms.
    """
    overlaps = _overlaps(mask)
    shares = np.exp((overlaps - overlaps.max()) / _SHARPNESS)
    likeness = shares / shares.sum() * np.minimum(1.0, overlaps / _FULL_OVERLAP)
    return dict(zip(SHAPES, likeness.tolist(), strict=True))


def _border(kinds_HW: np.ndarray) -> np.ndarray:
    inside = np.zeros(kinds_HW.shape, dtype=bool)
    inside[2:-2, 2:-2] = True
    return kinds_HW[~inside]


def _patches(kinds_HW: np.ndarray, min_area: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows, columns) of every connected patch that is large and at least two pixels thick somewhere inside."""
    components_HW = _components(kinds_HW)
    thick_HW = np.zeros(kinds_HW.shape, dtype=bool)
    corner = kinds_HW[:-1, :-1]
    thick_HW[:-1, :-1] = (corner == kinds_HW[1:, :-1]) & (corner == kinds_HW[:-1, 1:]) & (corner == kinds_HW[1:, 1:])
    areas = np.bincount(components_HW.ravel())
    cores = np.bincount(components_HW.ravel(), weights=thick_HW.ravel())
    chosen = np.flatnonzero((areas >= min_area) & (cores >= max(4, min_area // 4)) & (cores >= 0.25 * areas))
    found = [np.nonzero(components_HW == component) for component in chosen]
    return [(rows, columns) for rows, columns in found]


def _components(kinds_HW: np.ndarray) -> np.ndarray:
    """4-connected components of equal values: the smallest pixel index of its component at every pixel."""
    labels_HW = np.arange(kinds_HW.size).reshape(kinds_HW.shape)
    down = kinds_HW[:-1] == kinds_HW[1:]
    right = kinds_HW[:, :-1] == kinds_HW[:, 1:]
    while True:
        before_HW = labels_HW.copy()
        for one, two, same in (
            (labels_HW[:-1], labels_HW[1:], down),
            (labels_HW[:, :-1], labels_HW[:, 1:], right),
        ):
            one[same] = np.minimum(one, two)[same]
            two[same] = np.minimum(one, two)[same]  # anew: the two views overlap
        labels_HW[:] = labels_HW.ravel()[labels_HW]  # jump to the label of the label
        if np.array_equal(before_HW, labels_HW):
            return labels_HW


def _blob(colour: str, rows: np.ndarray, columns: np.ndarray) -> Blob:
    top, left = rows.min(), columns.min()
    mask = np.zeros((rows.max() - top + 1, columns.max() - left + 1), dtype=bool)
    mask[rows - top, columns - left] = True
    centre = ((left + columns.max() + 1) / 2 / SIDE, (top + rows.max() + 1) / 2 / SIDE)
    return Blob(colour, (float(centre[0]), float(centre[1])), mask)


def _overlaps(mask: np.ndarray) -> np.ndarray:
    """Intersection over union with each template, both stretched to one square; less for another aspect."""
    templates, aspects = _templates()
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    stretched = np.asarray(image.resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    common = np.minimum(stretched, templates).sum((1, 2)) / np.maximum(stretched, templates).sum((1, 2))
    ratios = mask.shape[1] / mask.shape[0] / aspects
    return common * np.minimum(ratios, 1 / ratios) ** 0.5


@cache
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """Coverage of every form inside its own bounding box [7, 24, 24], and the boxes' width by height [7]."""
    pairs = [_template(shape) for shape in SHAPES]
    return np.stack([template for template, _ in pairs]), np.array([aspect for _, aspect in pairs])


def _template(shape: str) -> tuple[np.ndarray, float]:
    big = 8 * _TEMPLATE
    canvas = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(canvas)
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
        if shape == "ring":
            inner = 0.24 * big
            draw.ellipse((inner, inner, big - 1 - inner, big - 1 - inner), fill=0)
    else:
        draw.polygon([(x * (big - 1), y * (big - 1)) for x, y in _corners(shape)], fill=255)
    box = canvas.getbbox()
    assert box is not None
    small = canvas.crop(box).resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255, (box[2] - box[0]) / (box[3] - box[1])


def _corners(shape: str) -> list[tuple[float, float]]:
    """Outline in the unit square, as the emoji world draws it (a test compares)."""
    if shape == "square":
        return [(0, 0), (1, 0), (1, 1), (0, 1)]
    if shape == "triangle":
        return [(0.5, 0.04), (1, 0.94), (0, 0.94)]
    if shape == "diamond":
        return [(0.5, 0), (0.9, 0.5), (0.5, 1), (0.1, 0.5)]
    turns = [2 * math.pi * k / 60 for k in range(60)]
    if shape == "star":
        radii = (0.53, 0.235)
        corners = [(radii[k % 2], math.pi * (k / 5 - 0.5)) for k in range(10)]
        return [(0.5 + r * math.cos(a), 0.53 + r * math.sin(a)) for r, a in corners]
    heights = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(0.5 + 16 * math.sin(t) ** 3 / 33, 0.47 - h / 33) for t, h in zip(turns, heights, strict=True)]
