"""A MENTOR in miniature: its checkpoint in the reference's layout, and the folders that an import needs beside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import SMALL_VQ
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from mentor_base.config import SIZES, MentorConfig
from mentor_base.interchange.exporting import reference_state
from mentor_base.interchange.names import LLAMAGEN, MENTOR, Layout
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.vq import VQConfig, VQModel

T5 = {"d_model": 24, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
CLIP = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP |= {"image_size": 16, "patch_size": 8}
ROW: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "t5_config": {**T5, "vocab_size": 16}, "clip_config": CLIP, "vq_config": SMALL_VQ,
}  # fmt: skip
ARGUMENTS = argparse.Namespace(image_size=16, fix="gpt-empty-fix", gpt_model="GPT-XL")
ROWS = 12


class Mini:
    """Paths of everything an import takes, and the tensors in the checkpoint.

    Attributes:
        mentor, llamagen: state dicts with the references' names; MENTOR's encoder in bfloat16, as in its files.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setitem(SIZES, "mini", ROW)
        self.folder = folder
        torch.manual_seed(0)
        vq_config = VQConfig(**SMALL_VQ)
        self.vq, self.tokenizer = folder / "vq", folder / "text"
        VQModel(vq_config).save_pretrained(str(self.vq))
        text_tokenizer().save_pretrained(str(self.tokenizer))
        model = MentorForConditionalGeneration(MentorConfig.of_size("mini", context_length=ROWS))
        torch.nn.init.normal_(model.decoder.head.weight)
        model.encoder.bfloat16()
        self.mentor = _named(model, MENTOR)
        self.llamagen = _named(model, LLAMAGEN)

    def save(self, state: Any, name: str = "generator.pt") -> Path:
        torch.save(state, self.folder / name)
        return self.folder / name

    def text_encoder(self) -> Path:
        folder = self.folder / "t5"
        T5ForConditionalGeneration(T5Config(**ROW["t5_config"])).save_pretrained(str(folder))
        text_tokenizer().save_pretrained(str(folder))
        return folder

    def vision(self) -> Path:
        folder = self.folder / "clip"
        CLIPVisionModel(CLIPVisionConfig(**CLIP)).save_pretrained(str(folder))
        return folder


def _named(model: MentorForConditionalGeneration, layout: Layout) -> dict[str, torch.Tensor]:
    return {key: tensor.detach().clone() for key, tensor in reference_state(model.state_dict(), layout).items()}


def text_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "fox": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
