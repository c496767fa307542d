"""Bits per pixel of a picture as JPEG: a monitor for noise and clutter (or, with a negative scale, compressibility)."""

from __future__ import annotations

import io
from typing import Annotated

from pydantic import Field

from mentor_rewards.contract import Reward, RewardBatch, RewardOutput, RewardSpec
from mentor_rewards.pixels import rgb


class JpegSize(Reward):
    """Bits per pixel after JPEG compression; lower is simpler. Meant as a monitor: flat pictures win it."""

    spec = RewardSpec(
        name="jpeg_size",
        version="1",
        range=(0.0, None),
        higher_is_better=False,
        probes=frozenset({"noise"}),
        licence="Apache-2.0",
    )

    def __init__(self, quality: Annotated[int, Field(ge=1, le=95)] = 90) -> None:
        self.quality = quality

    def score(self, batch: RewardBatch) -> RewardOutput:
        """Bits per pixel of each picture."""
        scores: list[float | None] = []
        for image in batch.images:
            packed = io.BytesIO()
            rgb(image).save(packed, format="JPEG", quality=self.quality)
            scores.append(8 * packed.tell() / (image.width * image.height))
        return RewardOutput(scores)
