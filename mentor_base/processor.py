"""MentorProcessor: prompts with ``<image>`` marks and pictures -> tensors for the encoder.

Each mark becomes the placeholder tokens of its picture, the end-of-text token is added, rows are padded on the left to
the longest of the batch. A prompt that does not fit is an error, where MENTOR cuts it.

For the query connector each picture has a guiding text: what to look for in it. As in MENTOR that is the subject's name
where the prompt has one and "whole image" elsewhere; ``meta["guides"]`` names one per picture.

Deviation from MENTOR: pictures go to the tower's square in one bicubic step, where MENTOR first squashes to 512 px, and
pads those of in-context rows with black to a square.
Shapes: K prompts, T slots, M pictures (flat, in prompt order), G guide tokens.
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

from mentor_base.checkpoint import read_json
from mentor_base.config import MentorConfig
from mentor_base.data.rows import shown
from mentor_base.data.schema import IMAGE_MARK, Example, Prompt
from mentor_base.errors import UserError, nearest
from mentor_base.images import over_white, to_pixels

FILE = "processor.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FACTS = ("context_length", "picture_slots", "image_size", "vision_tower")
TOKENIZER_FILE = "tokenizer.json"
GUIDE_FOLDER = "guide_tokenizer"
WHOLE_PICTURE = "whole image"
GUIDE_LENGTH = 32  # tokens; MENTOR's, as its Q-Former reads names and not captions


class MentorProcessor:
    """Tokenizer and picture preprocessing of a policy.

    Attributes:
        tokenizer: with ``<image>`` as one token, a padding and an end-of-text token.
        context_length: most prefix slots of a prompt.
        picture_slots: placeholders per picture.
        image_size: side of the tower's input, pixels.
        vision_tower: "clip" (CLIP's mean and standard deviation) or "tokenizer" (pixels in [-1, 1]).
        guide_tokenizer: of the query connector's texts; None with the MLP connector.
    """

    def __init__(
        self,
        tokenizer: Any,
        context_length: int,
        picture_slots: int,
        image_size: int,
        vision_tower: str = "clip",
        guide_tokenizer: Any = None,
    ) -> None:
        self.tokenizer, self.guide_tokenizer = tokenizer, guide_tokenizer
        self.context_length, self.picture_slots = context_length, picture_slots
        self.image_size, self.vision_tower = image_size, vision_tower
        self.placeholder_id = int(tokenizer.convert_tokens_to_ids(IMAGE_MARK))
        if self.placeholder_id == tokenizer.unk_token_id or tokenizer.pad_token_id is None:
            raise UserError(f"tokenizer: expected a token '{IMAGE_MARK}' and a padding token")

    @classmethod
    def of(cls, config: MentorConfig, tokenizer: Any, guide_tokenizer: Any = None) -> MentorProcessor:
        """The processor that fits a policy.

        Raises:
            UserError: a query connector without a tokenizer for its guiding texts.
        """
        if config.connector == "query" and guide_tokenizer is None:
            raise UserError("processor: expected a guide tokenizer with connector 'query', found none")
        borrowed = config.vision_tower == "tokenizer"
        side = config.vq_config.image_size if borrowed else config.clip_config.image_size
        guide_tokenizer = guide_tokenizer if config.connector == "query" else None
        return cls(tokenizer, config.context_length, config.picture_slots, side, config.vision_tower, guide_tokenizer)

    def __call__(self, prompts: Sequence[Prompt | Example]) -> dict[str, torch.Tensor | None]:
        """Prompts -> input_ids_KT, attention_mask_KT (long), pixel_values_M3HW (None without pictures).

        With a query connector also guide_ids_MG and guide_mask_MG (long, padded on the right; None without pictures).

        Raises:
            UserError: a prompt is longer than ``context_length``; names it.
        """
        rows = self.token_ids([prompt.text for prompt in prompts])
        for prompt, row in zip(prompts, rows, strict=True):
            self.check_length(row, prompt.text, len(prompt.images), prompt.meta.get("where", "prompt"))
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
            **self._guides(prompts),
        }

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts as the encoder reads them: each mark as its picture's placeholders, the end-of-text token last."""
        expanded = [text.replace(IMAGE_MARK, IMAGE_MARK * self.picture_slots) for text in texts]
        rows = self.tokenizer(expanded, add_special_tokens=False)["input_ids"]
        return [[*row, self.tokenizer.eos_token_id] for row in rows]

    def check_length(self, row: Sequence[int], text: str, pictures: int, where: str) -> None:
        """Refuse a row of ``token_ids`` that is longer than ``context_length``."""
        if len(row) > self.context_length:
            raise UserError(
                f"{where}: expected at most {self.context_length} prefix slots, found {len(row)} "
                f"({pictures} pictures of {self.picture_slots}) in {shown(text)}"
            )

    def _guides(self, prompts: Sequence[Prompt | Example]) -> dict[str, torch.Tensor | None]:
        if self.guide_tokenizer is None:
            return {}
        texts = [text for prompt in prompts for text in guides_of(prompt)]
        if not texts:
            return {"guide_ids": None, "guide_mask": None}
        rows = self.guide_tokenizer(
            texts, padding=True, padding_side="right", truncation=True, max_length=GUIDE_LENGTH, return_tensors="pt"
        )
        return {"guide_ids": rows["input_ids"], "guide_mask": rows["attention_mask"]}

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
        if self.guide_tokenizer is not None:
            self.guide_tokenizer.save_pretrained(str(Path(folder) / GUIDE_FOLDER))
        facts = {name: getattr(self, name) for name in FACTS}
        (Path(folder) / FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MentorProcessor:
        """Load what ``save_pretrained`` wrote.

        Raises:
            UserError: no processor there, one with unknown or missing facts, or one without its tokenizer.
        """
        file = Path(folder) / FILE
        if not file.exists():
            raise UserError(f"{folder}: expected a processor ({FILE}), found none")
        if not (Path(folder) / TOKENIZER_FILE).exists():
            raise UserError(f"{folder}: expected a text tokenizer ({TOKENIZER_FILE}), found none")
        facts = read_json(file)
        for name in facts:
            if name not in FACTS:
                raise UserError(f"{file}: unknown key '{name}'; {nearest(name, FACTS)}")
        for name in FACTS:
            if name not in facts:
                raise UserError(f"{file}: expected a key '{name}', found none")
        guides = Path(folder) / GUIDE_FOLDER
        guide_tokenizer = PreTrainedTokenizerFast.from_pretrained(str(guides)) if guides.exists() else None
        return cls(PreTrainedTokenizerFast.from_pretrained(str(folder)), **facts, guide_tokenizer=guide_tokenizer)


def guides_of(prompt: Prompt | Example) -> list[str]:
    """One guiding text per picture of a prompt.

    Raises:
        UserError: ``meta["guides"]`` that does not name one per picture.
    """
    count = len(prompt.images)
    guides = prompt.meta.get("guides") or [prompt.subject or WHOLE_PICTURE] * count
    if len(guides) != count:
        where = prompt.meta.get("where", "prompt")
        raise UserError(f"{where}: meta.guides: expected one text per picture, {count}, found {len(guides)}")
    return [str(guide) for guide in guides]
