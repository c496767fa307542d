"""What a stage learns to write: the image tokens of a target, or (captioning.py) the text of a caption.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from mentor_base.data.schema import Example
from mentor_base.generate import draw
from mentor_base.images import contact_sheet, to_images, to_pixels
from mentor_base.model import MentorForConditionalGeneration, MentorOutput
from mentor_base.settings import Validation
from mentor_base.stage_data import Collator, Row

CELL_SCALE = 2
LETTER = 6  # pixels per letter of the sheet's caption font


class Objective(Protocol):
    """Batches, loss and samples of a stage."""

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Rows -> what ``loss`` takes."""

    def loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> MentorOutput:
        """loss, and loss_N in nats per token; ``model`` may be wrapped for several processes."""

    def sheet(
        self, policy: MentorForConditionalGeneration, examples: Sequence[Example], settings: Validation, batch: int
    ) -> Image.Image:
        """The examples with what the policy makes of them."""


class ImageTokens:
    """Draw the target."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        return self.collator(rows)

    def loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> MentorOutput:
        """Mean token cross-entropy. All images have L tokens, so means of means are exact."""
        output: MentorOutput = model(mode="loss", **inputs)
        return output

    def sheet(
        self, policy: MentorForConditionalGeneration, examples: Sequence[Example], settings: Validation, batch: int
    ) -> Image.Image:
        """One row per example: references, target, the target through the tokenizer (the best possible), a sample."""
        prompts = [example.prompt() for example in examples]
        drawn = draw(policy, self.collator.processor, prompts, sampling=settings.sampling, batch=batch)
        ceilings = self._through_tokenizer(policy, examples)
        references = max(len(example.images) for example in examples)
        side = self.collator.image_size
        rows = []
        for example, ceiling, sample in zip(examples, ceilings, drawn.images, strict=True):
            shown = [image.resize((side, side)) for image in example.images]
            blank = [Image.new("RGB", (side, side), (236, 236, 236))] * (references - len(shown))
            rows.append([*shown, *blank, example.target.resize((side, side)), ceiling, sample])
        return captioned_sheet(rows, [prompt.plain_text for prompt in prompts])

    @torch.no_grad()
    def _through_tokenizer(
        self, policy: MentorForConditionalGeneration, examples: Sequence[Example]
    ) -> list[Image.Image]:
        """The targets as the frozen tokenizer can draw them."""
        pixels_N3HW = to_pixels([example.target for example in examples], self.collator.image_size).to(policy.device)
        return to_images(policy.vq.decode(policy.vq.encode(pixels_N3HW)))


def captioned_sheet(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str]) -> Image.Image:
    """Rows of equally many square pictures of one size, each with as much of its caption as fits below it."""
    letters = len(rows[0]) * rows[0][0].width * CELL_SCALE // LETTER
    return contact_sheet(rows, [caption[:letters] for caption in captions], scale=CELL_SCALE)
