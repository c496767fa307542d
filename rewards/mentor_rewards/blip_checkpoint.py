"""ImageReward's checkpoint as transformers' BlipVisionModel and BlipTextModel, and its linear head.

The checkpoint is one flat dictionary: ``blip.visual_encoder.*`` in timm's names, ``blip.text_encoder.*`` in BERT's, and
``mlp.layers.{0,2,4,6,7}``, five linear maps without activations between them. Sizes are read off the shapes, so
upstream's ``med_config.json`` is not needed. What shapes do not tell is the same in every BLIP: heads of 64 channels,
GELU, LayerNorm with 1e-6 (pictures) and 1e-12 (text).

Source: ImageReward.py, models/BLIP/{vit,med}.py of the package image-reward 1.5; Xu et al., arXiv 2304.05977.
Shapes: V vision width, W text width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from mentor_rewards.contract import RewardError
from mentor_rewards.pretrained import check_names, heads_of_64, load_state

HEAD_LAYERS = (0, 2, 4, 6, 7)
_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
# BLIP's contrastive projections and a buffer: in the file, not in the score.
_UNUSED = {
    *(f"blip.{tower}_proj.{part}" for tower in ("vision", "text") for part in ("weight", "bias")),
    f"{_TEXT}embeddings.position_ids",
}
_VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_VISION_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class TextModel(BlipTextModel):
    """BERT with cross-attention, without the pooler that ImageReward does not have."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, add_pooling_layer=False)


def vision_model(tensors: dict[str, torch.Tensor], dtype: str, where: str) -> BlipVisionModel:
    """The picture encoder of a checkpoint that has passed ``check_layout``."""
    own = {name.removeprefix(_VISION): tensor for name, tensor in tensors.items() if name.startswith(_VISION)}
    width, _, patch, _ = own["patch_embed.proj.weight"].shape
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(own["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=_count(own, "blocks."),
        num_attention_heads=heads_of_64(width, where),
        image_size=patch * math.isqrt(own["pos_embed"].shape[1] - 1),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    names = _vision_names(config.num_hidden_layers)
    return load_state(BlipVisionModel, config, {names[name]: tensor for name, tensor in own.items()}, dtype, where)


def text_model(tensors: dict[str, torch.Tensor], dtype: str, where: str) -> TextModel:
    """The text encoder, whose names transformers kept; its config is called a decoder's to get cross-attention."""
    own = {
        name.removeprefix(_TEXT): tensor
        for name, tensor in tensors.items()
        if name.startswith(_TEXT) and name not in _UNUSED
    }
    return load_state(TextModel, BlipTextConfig(**text_sizes(tensors, where), is_decoder=True), own, dtype, where)


def text_sizes(tensors: dict[str, torch.Tensor], where: str) -> dict[str, Any]:
    """The text encoder's sizes under the names that BERT's and BLIP's configs share, and ``encoder_hidden_size``."""
    entries, width = tensors[f"{_TEXT}embeddings.word_embeddings.weight"].shape
    first = f"{_TEXT}encoder.layer.0."
    return {
        "vocab_size": entries,
        "hidden_size": width,
        "encoder_hidden_size": tensors[f"{first}crossattention.self.key.weight"].shape[1],
        "intermediate_size": len(tensors[f"{first}intermediate.dense.weight"]),
        "num_hidden_layers": _count(tensors, f"{_TEXT}encoder.layer."),
        "num_attention_heads": heads_of_64(width, where),
        "max_position_embeddings": len(tensors[f"{_TEXT}embeddings.position_embeddings.weight"]),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


def head(tensors: dict[str, torch.Tensor], where: str) -> torch.nn.Sequential:
    """The five linear maps [W] -> [1], float32 whatever the encoders are in."""
    maps = []
    entering = len(tensors[f"{_TEXT}embeddings.LayerNorm.weight"])
    for place in HEAD_LAYERS:
        weight, bias = (tensors[f"{_HEAD}{place}.{part}"].float() for part in ("weight", "bias"))
        leaving = 1 if place == HEAD_LAYERS[-1] else weight.shape[0]
        if weight.shape != (leaving, entering) or bias.shape != (leaving,):
            expected = f"({leaving}, {entering}) and ({leaving},)"
            found = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise RewardError(f"{where}: {_HEAD}{place}: expected weight and bias of {expected}, found {found}")
        linear = torch.nn.Linear(entering, leaving, device="meta")
        linear.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        maps.append(linear)
        entering = leaving
    return torch.nn.Sequential(*maps).eval().requires_grad_(False)


def check_layout(tensors: dict[str, torch.Tensor], where: str) -> None:
    """Raise RewardError unless the names are an ImageReward checkpoint's, all of them and no other."""
    vision_layers, text_layers = _count(tensors, f"{_VISION}blocks."), _count(tensors, f"{_TEXT}encoder.layer.")
    expected = {f"{_VISION}{name}" for name in _vision_names(vision_layers)}
    expected |= {f"{_TEXT}{name}" for name in _text_names(text_layers)}
    expected |= {f"{_HEAD}{place}.{part}" for place in HEAD_LAYERS for part in ("weight", "bias")}
    check_names(set(tensors) - _UNUSED, expected, where)


def _vision_names(layers: int) -> dict[str, str]:
    """timm's name -> transformers' name."""
    blocks = {
        f"blocks.{n}.{own}.{part}": f"encoder.layers.{n}.{other}.{part}"
        for n in range(layers)
        for own, other in _VISION_LAYER.items()
        for part in ("weight", "bias")
    }
    return _VISION_NAMES | blocks


def _text_names(layers: int) -> set[str]:
    linear = ["intermediate.dense", "output.dense", "output.LayerNorm"]
    for attention in ("attention", "crossattention"):
        linear += [f"{attention}.self.{name}" for name in ("query", "key", "value")]
        linear += [f"{attention}.output.{name}" for name in ("dense", "LayerNorm")]
    parts = [f"encoder.layer.{n}.{name}" for n in range(layers) for name in linear]
    names = {f"{name}.{part}" for name in [*parts, "embeddings.LayerNorm"] for part in ("weight", "bias")}
    return names | {"embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"}


def _count(names: dict[str, torch.Tensor], prefix: str) -> int:
    """How many layers there are; at least one, so that an empty file is told what it lacks."""
    return max(1, len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)}))
