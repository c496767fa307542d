"""Small policies and parity inputs that several test files share."""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mentor_base.build import build_policy
from mentor_base.config import MentorConfig
from mentor_base.data.schema import Prompt
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.processor import MentorProcessor
from mentor_base.settings import PolicyModel
from mentor_base.vq import VQConfig, VQModel

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
SMALL_VQ = {
    "image_size": 16, "channels": 32, "multipliers": (1,), "residual_blocks": 1, "latent_channels": 16,
    "codebook_size": 32, "stem_patch": 4, "normalisation": "none", "attention": False,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "context_length": 56,
    "t5_config.d_model": 24, "t5_config.d_kv": 8, "t5_config.d_ff": 32, "t5_config.num_layers": 1,
    "t5_config.num_heads": 2,
}  # fmt: skip
CLIP = {
    "vision_tower": "clip", "clip_config.hidden_size": 32, "clip_config.intermediate_size": 32,
    "clip_config.num_hidden_layers": 2, "clip_config.num_attention_heads": 2, "clip_config.image_size": 16,
    "clip_config.patch_size": 4,
}  # fmt: skip
QUERY = {
    **CLIP, "connector": "query", "queries": 4, "reference_positions": "prefix", "qformer_config.hidden_size": 16,
    "qformer_config.num_attention_heads": 2, "qformer_config.intermediate_size": 16,
}  # fmt: skip
CORPUS = ["a red fox on a white background", "two blue circles", "this house in line art style", "cut out the boat"]


def small_policy(**options: Any) -> tuple[MentorForConditionalGeneration, MentorProcessor]:
    """A policy of 16 image tokens whose head and unconditional table are alive, in eval mode."""
    torch.manual_seed(0)
    vq = VQModel(VQConfig(**SMALL_VQ)).eval()
    model, processor = build_policy(PolicyModel(options={**SMALL, **options}), vq, CORPUS)
    with torch.no_grad():
        model.decoder.head.weight.normal_(std=0.3)
        model.decoder.uncond.normal_()
    return model, processor


@functools.cache
def shared_policy() -> tuple[MentorForConditionalGeneration, MentorProcessor]:
    """``small_policy()``, made once; tests that change it make their own."""
    return small_policy()


def picture(seed: int, side: int = 16) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def mixed_prompts() -> list[Prompt]:
    """Prompts with no, one and two pictures, of different lengths."""
    return [
        Prompt("two blue circles"),
        Prompt("<image> cut out the boat", (picture(1),)),
        Prompt("a red fox <image> on <image> in line art style", (picture(2), picture(3))),
    ]


def formula_weight(key: str, shape: list[int]) -> torch.Tensor:
    """The parity fixtures' weights: a function of name and shape."""
    weight = formula_data(key, shape)
    if len(shape) == 1:
        return 1 + 0.1 * weight if key.endswith("weight") else 0.1 * weight
    return weight / float(np.sqrt(np.prod(shape[1:])))


def formula_data(name: str, shape: list[int]) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def formula_tokens(name: str, shape: list[int], vocabulary: int) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(rng.integers(0, vocabulary, shape))


def fixture(name: str) -> tuple[dict[str, Any], Any]:
    """Facts and arrays of a parity fixture."""
    return json.loads((PARITY / f"{name}.json").read_text(encoding="utf-8")), np.load(PARITY / f"{name}.npz")


def reference_config(**fields: Any) -> MentorConfig:
    """A config of the parity fixtures' decoder: 2 layers, width 128, 4 x 4 image tokens."""
    vq = {"image_size": 16, "channels": 32, "multipliers": [1, 1, 1], "codebook_size": 64, "attention": False}
    t5 = {"d_model": 48, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
    clip = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip |= {"image_size": 28, "patch_size": 14}
    defaults: dict[str, Any] = {
        "size": "parity", "vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 512, "context_length": 12, "dropout": 0.0, "placeholder_id": 7, "vq_config": vq,
        "t5_config": {**t5, "vocab_size": 16, "dropout_rate": 0.0}, "clip_config": clip,
    }  # fmt: skip
    return MentorConfig(**{**defaults, **fields})
