"""open_clip's checkpoints of CLIP as transformers' CLIPModel.

open_clip keeps query, key and value in one ``in_proj`` and its projections transposed; everything else is a renaming.
Sizes are read off the tensors' shapes. Two facts are not in a checkpoint: the number of heads, which follows from the
width in every model of open_clip that has this layout (see VISION_HEADS), and the activation, which the caller states:
``gelu`` for LAION's towers, ``quick_gelu`` for OpenAI's.

Source: open_clip/model.py and transformer.py (open_clip_torch 3.3.0).
Shapes: W width, C embedding width, P patch side.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from mentor_rewards.pretrained import check_names, heads_of_64

VISION_HEADS = {1280: 16, 1408: 16, 1664: 16}  # ViT-H-14, g-14, bigG-14; all others have heads of 64 channels

_VISION = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_TOWERS = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
)


def clip_config(state: dict[str, torch.Tensor], activation: str, where: str) -> Any:
    """The CLIPConfig that an open_clip state dict has the shapes of.

    Raises:
        RewardError: not an open_clip CLIP of two transformers.
    """
    from transformers import CLIPConfig

    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    vision_layers, text_layers = (_layers(shapes, prefix) for prefix, _ in _TOWERS)
    check_names(set(shapes), _names(vision_layers, text_layers), where)
    width, _, patch, _ = shapes["visual.conv1.weight"]
    side = math.isqrt(shapes["visual.positional_embedding"][0] - 1)
    length, text_width = shapes["positional_embedding"]
    vocabulary = shapes["token_embedding.weight"][0]
    vision = {
        "hidden_size": width,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": VISION_HEADS.get(width) or heads_of_64(width, where),
        "intermediate_size": shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        "patch_size": patch,
        "image_size": side * patch,
        "hidden_act": activation,
    }
    text = {
        "hidden_size": text_width,
        "num_hidden_layers": text_layers,
        "num_attention_heads": heads_of_64(text_width, where),
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "hidden_act": activation,
        # open_clip pools where the token id is largest: at the end mark, the last of the vocabulary.
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=shapes["visual.proj"][1])


def clip_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under CLIPModel's names; ``state`` has passed ``clip_config``."""
    out: dict[str, torch.Tensor] = {"logit_scale": state["logit_scale"]}
    for name, tensor in state.items():
        if name in _PROJECTIONS:
            out[_PROJECTIONS[name]] = tensor.T.contiguous()
        elif name in _VISION or name in _TEXT:
            out[_VISION.get(name) or _TEXT[name]] = tensor
        for prefix, new_prefix in _TOWERS:
            if name.startswith(prefix):
                layer, _, rest = name.removeprefix(prefix).partition(".")
                out.update(_layer_tensors(f"{new_prefix}{layer}.", rest, tensor))
    return out


def _layer_tensors(prefix: str, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        return {f"{prefix}self_attn.{p}_proj.{kind}": part for p, part in zip("qkv", tensor.chunk(3), strict=True)}
    module, _, kind = name.rpartition(".")
    return {f"{prefix}{_LAYER[module]}.{kind}": tensor}


def _layers(shapes: dict[str, Any], prefix: str) -> int:
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)}
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)


def _names(vision_layers: int, text_layers: int) -> set[str]:
    kinds = [f"{module}.{kind}" for module in _LAYER for kind in ("weight", "bias")]
    kinds += ["attn.in_proj_weight", "attn.in_proj_bias"]
    names = {"logit_scale", *_VISION, *_TEXT, *_PROJECTIONS}
    for (prefix, _), layers in zip(_TOWERS, (vision_layers, text_layers), strict=True):
        names |= {f"{prefix}{layer}.{kind}" for layer in range(layers) for kind in kinds}
    return names
