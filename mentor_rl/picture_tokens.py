"""The tokenizer that trl's trainer asks for, of a policy that reads prompts by another way."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


class PictureTokens(PreTrainedTokenizerFast):
    """The tokenizer that trl asks for. It never meets text; "decoding" picture tokens gives empty strings."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("tokenizer_object", Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>")))
        super().__init__(**{"pad_token": "<pad>", "eos_token": "</s>", **kwargs})

    def batch_decode(self, sequences: Any, *args: Any, **kwargs: Any) -> list[str]:
        return [""] * len(sequences)
