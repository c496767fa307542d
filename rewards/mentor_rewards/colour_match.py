"""Is the ground of a picture of the colour that the prompt names?

Looks at a ring along the border. Each ring pixel scores exp(-(d / tolerance)^2), d its OKLab distance to the named
colour; the picture's score is the mean over the best ``share`` of the ring, so a subject that covers part of the border
costs nothing, and a ground of another colour scores near 0 however the rest looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from mentor_rewards.contract import Reward, RewardBatch, RewardOutput, RewardSpec, nearest
from mentor_rewards.palette import COLOURS, RGB, oklab
from mentor_rewards.pixels import rgb

Share = Annotated[float, Field(gt=0, le=1)]


class ColourMatch(Reward):
    """How well the ground has the colour named in metadata["background"], in [0, 1]; 1 is exact."""

    spec = RewardSpec(
        name="colour_match",
        version="1",
        metadata=frozenset({"background"}),
        range=(0.0, 1.0),
        probes=frozenset({"noise", "prompt"}),
        licence="Apache-2.0",
    )

    def __init__(
        self,
        palette: Mapping[str, RGB] | None = None,
        ring: Annotated[float, Field(gt=0, le=0.5)] = 0.08,
        share: Share = 0.6,
        tolerance: Annotated[float, Field(gt=0)] = 0.12,
    ) -> None:
        """
        Args:
            palette: colour names -> sRGB; default: the emoji world's.
            ring: width of the ring as a share of the shorter side.
            share: part of the ring that has to be ground.
            tolerance: OKLab distance at which a pixel scores 1/e.
        """
        self.palette = dict(palette or COLOURS)
        self.ring, self.share, self.tolerance = ring, share, tolerance

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One score per picture; None where the palette does not know the colour."""
        scores: list[float | None] = []
        reasons: list[str | None] = []
        for image, facts in zip(batch.images, batch.metadata, strict=True):
            name = facts.get("background")
            if name not in self.palette:
                scores.append(None)
                reasons.append(f"unknown background colour {name!r}; {nearest(str(name), self.palette)}")
            else:
                scores.append(self._score_one(image, self.palette[name]))
                reasons.append(None)
        return RewardOutput(scores, reasons)

    def _score_one(self, image: Image.Image, colour: RGB) -> float:
        pixels_HW3 = np.asarray(rgb(image), dtype=np.float64) / 255
        width = max(1, round(self.ring * min(image.size)))
        inside = np.zeros(pixels_HW3.shape[:2], dtype=bool)
        inside[width:-width, width:-width] = True
        distances = np.linalg.norm(oklab(pixels_HW3[~inside]) - oklab(np.array(colour) / 255), axis=-1)
        best = np.sort(distances)[: max(1, round(self.share * len(distances)))]
        return float(np.exp(-((best / self.tolerance) ** 2)).mean())
