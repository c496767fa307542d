"""A policy of ours as one file with the names of LlamaGen or MENTOR: the import's table read the other way.

``.pt``: ``{"model": state dict}`` by torch.save, which is what both projects' loaders read. ``.safetensors``: the bare
state dict, one tensor in memory at a time. Values keep their dtype unless another is asked for, so that what was
imported comes out bit for bit. The image tokenizer stays behind: neither layout has a place for it.

LlamaGen's own code turns the prefix by zero (config.py, ``prefix_rotation``): a policy with "identity" needs a decoder
with MENTOR's correction, whose names are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from mentor_base.checkpoint import DTYPES, load_policy, model_folder
from mentor_base.config import MentorConfig
from mentor_base.errors import UserError, nearest
from mentor_base.interchange.facts import own_config
from mentor_base.interchange.match import Blueprint, Tensors, gather
from mentor_base.interchange.names import LLAMAGEN, MENTOR, OURS, Layout
from mentor_base.interchange.weight_files import read_weights, write_safetensors

Format = Literal["mentor", "llamagen"]
LAYOUTS: dict[Format, Layout] = {"mentor": MENTOR, "llamagen": LLAMAGEN}
SUFFIXES = (".pt", ".pth", ".safetensors")
DECODER_VALUES = {"reference_positions": "prefix", "image_positions": "input", "rope_theta": 1e4, "rms_norm_eps": 1e-5}
FIXED: dict[Format, dict[str, Any]] = {
    "llamagen": DECODER_VALUES,
    "mentor": {**DECODER_VALUES, "vision_tower": "clip", "connector": "mlp", "connector_activation": "gelu"},
}
"""Fields for which the reference code knows one value only, and no place in a checkpoint to say another."""


def export_reference(source: str | Path, file: Path, layout: Format, dtype: str | None = None) -> None:
    """Write the policy in ``source`` (an exported folder or a run) to ``file``.

    Memory: with .safetensors the mapped source and one tensor; with .pt a copy of all tensors beside it, since
    torch.save writes whole storages.

    Raises:
        UserError: the policy uses an option that the layout cannot hold, or ``file`` has another suffix.
    """
    if file.suffix not in SUFFIXES:
        raise UserError(f"OUT: expected a file name with {' or '.join(SUFFIXES)}, found '{file.suffix}'")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype: unknown '{dtype}'; {nearest(dtype, DTYPES)}")
    folder = model_folder(source)
    config = own_config(folder)
    check_expressible(config, layout, folder)
    state = _folded(folder) if config.factorised_codebook else _stored(folder, config)
    kind = DTYPES.get(dtype or "")
    named = reference_state(state, LAYOUTS[layout])
    if file.suffix == ".safetensors":
        write_safetensors(file, {key: (tensor,) for key, tensor in named.items()}, kind)
        return
    copies: dict[int, torch.Tensor] = {}  # tied tensors stay one tensor
    for tensor in named.values():
        copies.setdefault(tensor.data_ptr(), tensor.to(kind, copy=True) if kind else tensor.clone())
    torch.save({"model": {key: copies[tensor.data_ptr()] for key, tensor in named.items()}}, file)


def check_expressible(config: MentorConfig, layout: Format, where: Path) -> None:
    """Refuse a policy that the reference code would compute differently."""
    for name, expected in FIXED[layout].items():
        found = getattr(config, name)
        if found != expected:
            raise UserError(
                f"{where}: {name}: expected {expected!r}, the only value that {LAYOUTS[layout].title}'s code knows; "
                f"found {found!r}"
            )
    if layout == "mentor" and config.connector_width not in (None, config.text_width):
        raise UserError(
            f"{where}: connector_width: expected the text encoder's width {config.text_width}, the only one that "
            f"MENTOR's code knows; found {config.connector_width}"
        )


def reference_state(state: Tensors, layout: Layout) -> dict[str, torch.Tensor]:
    """Our tensors under the reference's names, as views; those without a place there are left behind."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        keys = layout.keys(name)
        named.update(zip(keys, tensor.chunk(len(keys)) if keys else (), strict=True))
    return named


def _stored(folder: Path, config: MentorConfig) -> dict[str, torch.Tensor]:
    """The folder's tensors as they lie on disk, all of them checked, tied ones under both names."""
    plan = Blueprint.of(config)
    found, _ = gather(read_weights(folder).tensors, OURS, plan.shapes, str(folder), plan.tied)
    state = {name: tensor for name, (tensor,) in found.items()}
    return {**state, **{alias: state[name] for alias, name in plan.tied.items() if name in state}}


def _folded(folder: Path) -> Mapping[str, torch.Tensor]:
    model, _ = load_policy(folder)
    state: Mapping[str, torch.Tensor] = model.fold().state_dict()
    return state
