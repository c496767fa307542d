"""DINO's and DINOv2's weights as transformers' ViTModel and Dinov2Model.

A folder or hub id is in the layout of transformers. A file is what facebookresearch/dino publishes for its ViTs
(``dino_deitsmall8_pretrain.pth`` and the like), with query, key and value in one tensor; its sizes are read off the
shapes, heads have 64 channels in all of them, and its LayerNorms divide with 1e-6.

Source: vision_transformer.py of facebookresearch/dino.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from mentor_rewards.contract import RewardError
from mentor_rewards.pretrained import (
    check_names,
    heads_of_64,
    load_model,
    load_state,
    model_folder,
    read_tensors,
    typed_weights,
)

_EPSILON = 1e-6
_WHOLE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
# ViTModel's names in every release of transformers up to 5; later ones translate them while loading.
_LAYER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def find_dino(source: str | Path, model_type: str) -> list[Path]:
    """The files of weights, there or fetched; arguments as in ``load_dino``. Reads the config only.

    Raises:
        RewardError: no such weights, or a file or config of another network.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if model_type != "vit":
            raise RewardError(f"{path}: expected a folder of a transformers model, found a file")
        return [path]
    return typed_weights(model_folder(source), model_type)


def load_dino(source: str | Path, model_type: str, dtype: str) -> tuple[Any, list[Path]]:
    """The network and the files it was read from.

    Args:
        model_type: ``vit`` (DINO) or ``dinov2``.

    Raises:
        RewardError: no such weights, or weights of another network.
    """
    from transformers import Dinov2Model, ViTModel

    files = find_dino(source, model_type)
    if Path(source).expanduser().is_file():
        state, where = read_tensors(files[0]), str(files[0])
        return load_state(
            ViTModel, _config(state, where), _renamed(state), dtype, where, add_pooling_layer=False
        ), files
    folder = files[0].parent
    if model_type == "vit":
        return load_model(ViTModel, folder, dtype, add_pooling_layer=False), files
    return load_model(Dinov2Model, folder, dtype), files


def _config(state: dict[str, torch.Tensor], where: str) -> Any:
    from transformers import ViTConfig

    layers = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=0)
    kinds = [f"{module}.{kind}" for module in (*_LAYER, "attn.qkv") for kind in ("weight", "bias")]
    names = {f"blocks.{layer}.{kind}" for layer in range(layers) for kind in kinds}
    check_names(set(state), {*_WHOLE, *names}, where)
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads_of_64(width, where),
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        patch_size=patch,
        image_size=patch * math.isqrt(state["pos_embed"].shape[1] - 1),
        layer_norm_eps=_EPSILON,
    )


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name in _WHOLE:
            out[_WHOLE[name]] = tensor
            continue
        _, layer, rest = name.split(".", 2)
        module, _, kind = rest.rpartition(".")
        prefix = f"encoder.layer.{layer}"
        if module == "attn.qkv":
            for part, chunk in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[f"{prefix}.attention.attention.{part}.{kind}"] = chunk
        else:
            out[f"{prefix}.{_LAYER[module]}.{kind}"] = tensor
    return out
