"""ImageReward's network at work: prompts and pictures in, scores out, in transformers or in the upstream package.

Shapes: M pictures, S = 35 text tokens, W text width.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from mentor_rewards.blip_checkpoint import check_layout, head, text_model, text_sizes, vision_model
from mentor_rewards.clip_preprocessing import Preprocessing
from mentor_rewards.contract import RewardError
from mentor_rewards.pixels import rgb
from mentor_rewards.pretrained import read_tensors
from mentor_rewards.weights import TOKENIZER_FILES, find_folder

TOKENS = 35  # upstream pads and cuts every prompt to this length
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw scores over upstream's training set


class Scorer(Protocol):
    """M scores of M pictures with their prompts, and which prompts lost tokens."""

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """(head(h_CLS) - MEAN) / STD of each pair."""

    def too_long(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts have more than TOKENS tokens, [CLS] and [SEP] counted."""


class BlipScorer:
    """ImageReward in transformers: picture encoder, text encoder that looks at the picture, linear head."""

    def __init__(self, checkpoint: Path, tokenizer: str | Path, device: str, dtype: str) -> None:
        where = str(checkpoint)
        tensors = read_tensors(checkpoint)
        check_layout(tensors, where)
        self._vision = vision_model(tensors, dtype, where).to(device)
        self._text = text_model(tensors, dtype, where).to(device)
        self._head = head(tensors, where).to(device)
        self._tokenizer = _tokenizer(tokenizer, self._text.config.vocab_size, where)
        side = self._vision.config.image_size
        self._pixels = Preprocessing(short=side, crop=side, odd_margin="round")

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """As in Scorer."""
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        device, dtype = self._vision.device, self._vision.dtype
        with torch.inference_mode():
            seen = self._vision(self._pixels(images).to(device, dtype)).last_hidden_state
            hidden_MSW = self._text(
                input_ids=tokens["input_ids"].to(device),
                attention_mask=tokens["attention_mask"].to(device),
                encoder_hidden_states=seen,
                is_decoder=False,  # attention in both directions, as upstream
            ).last_hidden_state
            raw = self._head(hidden_MSW[:, 0].float())[:, 0]
        return ((raw - MEAN) / STD).tolist()

    def too_long(self, prompts: Sequence[str]) -> list[bool]:
        """As in Scorer."""
        return _too_long(self._tokenizer, prompts)


class UpstreamScorer:
    """The package image-reward, in float32; it fetches bert-base-uncased from the hub by itself."""

    def __init__(self, checkpoint: Path, device: str, dtype: str) -> None:
        try:
            from ImageReward import load
        except ImportError as error:
            raise RewardError(
                f"{error}; `backend: upstream` needs the extra: pip install 'mentor-rl[image-reward]', beside "
                "openai-clip and a transformers that this package can be imported with (4.53)"
            ) from error
        if dtype != "float32":
            raise RewardError(f"backend 'upstream' computes in float32, found dtype '{dtype}'")
        tensors = read_tensors(checkpoint)
        check_layout(tensors, str(checkpoint))
        sizes = text_sizes(tensors, str(checkpoint))
        sizes |= {"add_cross_attention": True, "encoder_width": sizes.pop("encoder_hidden_size")}
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder, "med_config.json")
            config.write_text(json.dumps(sizes))
            self._model = load(str(checkpoint), device=device, med_config=str(config))

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """As in Scorer; one picture after the other, as upstream does."""
        with torch.inference_mode():
            return [self._model.score(prompt, rgb(image).copy()) for image, prompt in zip(images, prompts, strict=True)]

    def too_long(self, prompts: Sequence[str]) -> list[bool]:
        """As in Scorer."""
        return _too_long(self._model.blip.tokenizer, prompts)


def find_tokenizer(source: str | Path) -> Path:
    """The folder of a tokenizer, there or fetched.

    Raises:
        RewardError: no folder, or none of a tokenizer's files in it.
    """
    folder = find_folder(source, (*TOKENIZER_FILES, "vocab.txt", "config.json"))
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise RewardError(f"{folder}: expected a tokenizer, tokenizer.json or vocab.txt, found neither")
    return folder


def _tokenizer(source: str | Path, entries: int, where: str) -> Any:
    """BERT's uncased tokenizer with BLIP's two marks; it must have as many entries as the embedding has rows."""
    from transformers import AutoTokenizer

    folder = find_tokenizer(source)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    if len(tokenizer) != entries:
        raise RewardError(
            f"{folder}: expected a tokenizer of {entries} entries with [DEC] and [ENC], as many as {where} embeds, "
            f"found {len(tokenizer)}"
        )
    return tokenizer


def _too_long(tokenizer: Any, prompts: Sequence[str]) -> list[bool]:
    lengths = {prompt: len(tokenizer(prompt, truncation=False)["input_ids"]) for prompt in set(prompts)}
    return [lengths[prompt] > TOKENS for prompt in prompts]
