"""What a stage learns to write: the image tokens of a target, or (captioning.py) the text of a caption.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from mentor_base.data.schema import Example
from mentor_base.data.targets import target_pixels
from mentor_base.generate import draw
from mentor_base.images import contact_sheet, to_images
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
        references = max(len(example.images) for example in examples)
        side = self.collator.image_size
        pixels_N3HW = target_pixels([(example.task, example.target) for example in examples], side)
        targets, ceilings = to_images(pixels_N3HW), self._through_tokenizer(policy, pixels_N3HW)
        rows = []
        for example, target, ceiling, sample in zip(examples, targets, ceilings, drawn.images, strict=True):
            shown = [image.resize((side, side)) for image in example.images]
            blank = [Image.new("RGB", (side, side), (236, 236, 236))] * (references - len(shown))
            rows.append([*shown, *blank, target, ceiling, sample])
        return captioned_sheet(rows, [prompt.plain_text for prompt in prompts])

    @torch.no_grad()
    def _through_tokenizer(
        self, policy: MentorForConditionalGeneration, pixels_N3HW: torch.Tensor
    ) -> list[Image.Image]:
        """Pictures as the frozen tokenizer can draw them."""
        return to_images(policy.vq.decode(policy.vq.encode(pixels_N3HW.to(policy.device))))


def captioned_sheet(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str]) -> Image.Image:
    """Rows of equally many square pictures of one size, each with as much of its caption as fits below it."""
    letters = len(rows[0]) * rows[0][0].width * CELL_SCALE // LETTER
    return contact_sheet(rows, [caption[:letters] for caption in captions], scale=CELL_SCALE)
