"""Disguises: one random change for all drawings of a subject in an example, so that only the picture says how it looks.

A training set names each of its subjects many times, and a policy learns the drawings by their names: the reference
then hardly matters, and subjects it never met come out as nothing in particular. A disguised subject is turned,
mirrored, stretched and recoloured, the same way in reference and target, and goes by no name.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

NAME = "thing"  # what a disguised subject is called
NARROWEST = 0.6  # share of its side to which a drawing is squeezed at most
TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


@dataclass(frozen=True)
class Disguise:
    """A change of RGBA drawings.

    Attributes:
        mirrored: left and right change places, before the turn.
        quarter_turns: 0 to 3, counter-clockwise.
        hue: added to the hue, in 256ths of the colour circle; grey stays grey.
        width, height: shares of the side to which the drawing is squeezed, about its centre, after the turn.
    """

    mirrored: bool
    quarter_turns: int
    hue: int
    width: float
    height: float

    @classmethod
    def random(cls, rng: Random) -> Disguise:
        """Turned by a quarter or more in one of three cases, squeezed along one side in half of them."""
        squeeze = rng.uniform(NARROWEST, 1.0) if rng.random() < 0.5 else 1.0
        width, height = rng.choice(((squeeze, 1.0), (1.0, squeeze)))
        turns = rng.choice((1, 2, 3)) if rng.random() < 1 / 3 else 0
        return cls(rng.random() < 0.5, turns, rng.randrange(256), width, height)

    def __call__(self, drawing: np.ndarray) -> np.ndarray:
        """uint8 [side, side, 4], straight alpha -> the same shape."""
        alpha = Image.fromarray(drawing[:, :, 3])
        colours = Image.fromarray(drawing[:, :, :3]).convert("HSV")
        hue, saturation, value = colours.split()
        shifted = Image.fromarray(np.asarray(hue) + np.uint8(self.hue))
        changed = Image.merge("HSV", (shifted, saturation, value)).convert("RGB")
        changed.putalpha(alpha)
        if self.mirrored:
            changed = changed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turn = TURNS[self.quarter_turns]
        if turn is not None:
            changed = changed.transpose(turn)
        return self._squeezed(changed)

    def _squeezed(self, drawing: Image.Image) -> np.ndarray:
        side = drawing.width
        size = (round(side * self.width), round(side * self.height))
        if size == drawing.size:
            return np.asarray(drawing)
        canvas = Image.new("RGBA", drawing.size)
        canvas.paste(drawing.resize(size, Image.Resampling.BOX), ((side - size[0]) // 2, (side - size[1]) // 2))
        return np.asarray(canvas)
