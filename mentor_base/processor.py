"""MentorProcessor: prompts with ``<image>`` marks and pictures -> tensors for the encoder.

Each mark becomes one placeholder token per patch, the end-of-text token is added, rows are padded on the left to the
longest of the batch. A prompt that does not fit is an error, where MENTOR cuts it.

Deviation from MENTOR: pictures go to the tower's square in one bicubic step, where MENTOR first squashes to 512 px.
Shapes: K prompts, T slots, M pictures (flat, in prompt order).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from mentor_base.config import MentorConfig
from mentor_base.data.schema import IMAGE_MARK, Example, Prompt
from mentor_base.errors import UserError, nearest
from mentor_base.images import over_white, to_pixels

FILE = "processor.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FACTS = ("context_length", "patches", "image_size", "vision_tower")


class MentorProcessor:
    """Tokenizer and picture preprocessing of a policy.

    Attributes:
        tokenizer: with ``<image>`` as one token, a padding and an end-of-text token.
        context_length: most prefix slots of a prompt.
        patches: placeholders per picture.
        image_size: side of the tower's input, pixels.
        vision_tower: "clip" (CLIP's mean and standard deviation) or "tokenizer" (pixels in [-1, 1]).
    """

    def __init__(
        self, tokenizer: Any, context_length: int, patches: int, image_size: int, vision_tower: str = "clip"
    ) -> None:
        self.tokenizer = tokenizer
        self.context_length, self.patches = context_length, patches
        self.image_size, self.vision_tower = image_size, vision_tower
        self.placeholder_id = int(tokenizer.convert_tokens_to_ids(IMAGE_MARK))
        if self.placeholder_id == tokenizer.unk_token_id or tokenizer.pad_token_id is None:
            raise UserError(f"tokenizer: expected a token '{IMAGE_MARK}' and a padding token")

    @classmethod
    def of(cls, config: MentorConfig, tokenizer: Any) -> MentorProcessor:
        """The processor that fits a policy."""
        borrowed = config.vision_tower == "tokenizer"
        side = config.vq_config.image_size if borrowed else config.clip_config.image_size
        return cls(tokenizer, config.context_length, config.patches, side, config.vision_tower)

    def __call__(self, prompts: Sequence[Prompt | Example]) -> dict[str, torch.Tensor | None]:
        """Prompts -> input_ids_KT, attention_mask_KT (long), pixel_values_M3HW (None without pictures).

        Raises:
            UserError: a prompt is longer than ``context_length``; names it.
        """
        expanded = [prompt.text.replace(IMAGE_MARK, IMAGE_MARK * self.patches) for prompt in prompts]
        rows = self.tokenizer(expanded, add_special_tokens=False)["input_ids"]
        rows = [[*row, self.tokenizer.eos_token_id] for row in rows]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.context_length:
                raise UserError(
                    f"{prompt.meta.get('where', 'prompt')}: expected at most {self.context_length} prefix slots, found "
                    f"{len(row)} ({len(prompt.images)} pictures of {self.patches}) in '{prompt.text}'"
                )
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, longest - len(row) :] = 1
        pictures = [picture for prompt in prompts for picture in prompt.images]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "pixel_values": self.pixels(pictures) if pictures else None,
        }

    def pixels(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Pictures as the vision tower wants them: pixels_M3HW, float32."""
        if self.vision_tower == "tokenizer":
            return to_pixels(pictures, self.image_size)
        side = (self.image_size, self.image_size)
        squares = [over_white(picture).resize(side, Image.Resampling.BICUBIC) for picture in pictures]
        unit = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).float() / 255.0
        normal = (unit - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        return normal.permute(0, 3, 1, 2).contiguous()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files and processor.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(folder))
        facts = {name: getattr(self, name) for name in FACTS}
        (Path(folder) / FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MentorProcessor:
        """Load what ``save_pretrained`` wrote.

        Raises:
            UserError: no processor there, or one with unknown or missing facts.
        """
        file = Path(folder) / FILE
        if not file.exists():
            raise UserError(f"{folder}: expected a processor ({FILE}), found none")
        facts = json.loads(file.read_text(encoding="utf-8"))
        for name in facts:
            if name not in FACTS:
                raise UserError(f"{file}: unknown key '{name}'; {nearest(name, FACTS)}")
        for name in FACTS:
            if name not in facts:
                raise UserError(f"{file}: expected a key '{name}', found none")
        return cls(PreTrainedTokenizerFast.from_pretrained(str(folder)), **facts)
