"""Weights files: those of others read without running their code, and safetensors written one tensor at a time.

Tensors that are read are views of the mapped file: nothing is loaded before it is touched. The writer holds one tensor
at a time, so that a checkpoint is converted in little more than its own size of memory, all of it the mapped source.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mentor_base.checkpoint import read_json
from mentor_base.errors import UserError

WRAPPERS = ("model", "module", "state_dict")
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
STORED_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}

Pieces = tuple[torch.Tensor, ...]
"""A tensor in parts along its first axis, which the writer puts one behind the other."""


@dataclass(frozen=True)
class WeightFile:
    """What a weights file or folder holds.

    Attributes:
        tensors: by their names in the file; views of the mapped file.
        wrapper: the entry in which the state dict lay ("model", "module", "state_dict"), None when bare.
        beside: other entries beside the state dict, such as an optimizer's state.
        arguments: of the training that wrote the file, where it kept them (MENTOR's entry ``args``).
        bytes: size on disk.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor]
    wrapper: str | None = None
    beside: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bytes: int = 0


def read_weights(path: str | Path) -> WeightFile:
    """Open a .safetensors file, a file of torch.save, or a folder with either (in shards too).

    Raises:
        UserError: nothing there, a damaged file, pickled code, or no state dict in it.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UserError(f"{path}: expected a weights file or a folder with one, found nothing there")
    if path.suffix == ".safetensors":
        return WeightFile(path, _read_safetensors(path), bytes=path.stat().st_size)
    if path.suffix in PICKLED:
        return unwrapped(_read_pickled(path), path)
    raise UserError(f"{path}: expected .safetensors, {', '.join(PICKLED)} or a folder, found '{path.suffix}'")


def unwrapped(content: Any, path: Path) -> WeightFile:
    """The state dict inside LlamaGen's and MENTOR's wrappers, or bare.

    Raises:
        UserError: neither under one of WRAPPERS nor bare.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a state dict, found {type(content).__name__}")
    wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
    tensors = content if wrapper is None else content[wrapper]
    strange = [str(key) for key, value in tensors.items() if not _is_plain(key, value)]
    if strange or not tensors:
        raise UserError(
            f"{path}: expected tensors by name, bare or under {', '.join(WRAPPERS)}; "
            f"found {'nothing' if not tensors else ', '.join(map(repr, strange[:3]))}"
        )
    beside = () if wrapper is None else tuple(str(key) for key in content if key != wrapper)
    kept = content.get("args") if wrapper else None
    arguments = vars(kept) if isinstance(kept, argparse.Namespace) else {}
    return WeightFile(path, tensors, wrapper, beside, arguments, path.stat().st_size if path.exists() else 0)


def _is_plain(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


def _read_folder(folder: Path) -> WeightFile:
    for name in FOLDER_FILES:
        index = folder / f"{name}.index.json"
        if index.exists():
            return _read_shards(index)
        if (folder / name).exists():
            return read_weights(folder / name)
    raise UserError(f"{folder}: expected {' or '.join(FOLDER_FILES)}, whole or in shards with an index, found neither")


def _read_shards(index: Path) -> WeightFile:
    places = read_json(index).get("weight_map", {})
    tensors: dict[str, torch.Tensor] = {}
    size = 0
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{index}: expected names of files beside it, found '{name}'")
        shard = read_weights(index.parent / name)
        tensors |= shard.tensors
        size += shard.bytes
    lost = sorted(places.keys() - tensors.keys())
    if lost or not places:
        raise UserError(
            f"{index}: expected every tensor that it names in its files, found no '{(lost or ['tensor'])[0]}'"
        )
    return WeightFile(index.parent, tensors, bytes=size)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)  # on the CPU: mapped, not read
    except SafetensorError as error:
        raise UserError(f"{path}: expected a whole safetensors file, found a damaged one: {error}") from error
    return tensors


def _read_pickled(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # the format before torch 1.6 is no archive and has to be read as a whole
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # a broken or hostile pickle fails in whichever way its opcodes choose
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        found = f"'{code[1]}', which could run code; refused" if code else "a damaged file or one of another kind"
        raise UserError(f"{path}: expected tensors saved by torch.save, found {found}") from error


def write_safetensors(file: Path, tensors: Mapping[str, Pieces], dtype: torch.dtype | None = None) -> None:
    """Write ``tensors`` to one safetensors file, piece after piece; floats as ``dtype`` where it is given.

    safetensors' own writer wants all tensors of a file at once. The format: length of the header (8 bytes, little
    endian), header (JSON: dtype, shape, begin and end of each tensor), data without gaps.
    """
    kinds = {name: _stored_dtype(name, pieces, dtype) for name, pieces in tensors.items()}
    order = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))  # every tensor lies aligned to its dtype
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + sum(piece.numel() for piece in tensors[name]) * kinds[name].itemsize
        shape = joined_shape(tensors[name])
        header[name] = {"dtype": STORED_NAMES[kinds[name]], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in tensors[name]:
                flat = piece.detach().to(kinds[name]).contiguous().reshape(-1)
                out.write(flat.view(torch.uint8).numpy().data)


def joined_shape(pieces: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """Shape of the whole tensor."""
    first = pieces[0]
    return tuple(first.shape) if len(pieces) == 1 else (sum(map(len, pieces)), *first.shape[1:])


def _stored_dtype(name: str, pieces: Pieces, dtype: torch.dtype | None) -> torch.dtype:
    kind = dtype if dtype is not None and pieces[0].is_floating_point() else pieces[0].dtype
    if kind not in STORED_NAMES:
        raise UserError(f"'{name}': expected one of {', '.join(map(str, STORED_NAMES))}, found {kind}")
    return kind
