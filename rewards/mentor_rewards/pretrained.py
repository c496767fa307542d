"""Strict loading of transformers models, and of files of tensors: nothing missing, nothing left over, nothing reshaped.

Only safetensors and torch's ``weights_only`` format are read, so a checkpoint cannot run code.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mentor_rewards.contract import RewardError
from mentor_rewards.weights import MODEL_FILES, find_folder

_PICKLED = "pytorch_model.bin"


def upstream_module(name: str, extra: str) -> Any:
    """A module of an upstream package, for ``backend: upstream``.

    Raises:
        RewardError: it cannot be imported; names the extra.
    """
    try:
        return import_module(name)
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision that does not fit raises RuntimeError
        reason = str(error).splitlines()[0]
        raise RewardError(
            f"backend upstream: {reason}; it needs a torchvision that fits torch, and the extra: "
            f"pip install 'mentor-rl[{extra}]'"
        ) from error


def model_folder(source: str | Path, extra: tuple[str, ...] = ()) -> Path:
    """The folder of a transformers model, with its config and weights: safetensors, or the older .bin.

    Args:
        source: local folder or hub id.
        extra: further files to fetch, e.g. the tokenizer's.
    """
    folder = find_folder(source, (*MODEL_FILES, *extra))
    if Path(source).expanduser().is_dir() or any(folder.glob("model*.safetensors")):
        return folder
    return find_folder(source, (*MODEL_FILES, *extra, _PICKLED))


def weights_of(folder: Path) -> list[Path]:
    """The files of weights that ``load_model`` reads."""
    found = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob(_PICKLED))
    if not found:
        raise RewardError(f"{folder}: expected model.safetensors or {_PICKLED}, found neither")
    return found


def typed_weights(folder: Path, model_type: str) -> list[Path]:
    """As ``weights_of``, of a folder whose config says that it is of this type."""
    found = read_json(folder / "config.json").get("model_type")
    if found != model_type:
        raise RewardError(f"{folder}: expected model_type '{model_type}', found {found!r}")
    return weights_of(folder)


def load_model(model_class: Any, folder: Path, dtype: str, **options: Any) -> Any:
    """``model_class.from_pretrained`` of a local folder, frozen and in evaluation mode, on the CPU.

    Raises:
        RewardError: damaged file; missing, unexpected or misshapen tensors, with their names.
    """
    safe = weights_of(folder)[0].suffix == ".safetensors"
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=safe,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise RewardError(f"{folder}: expected whole files of weights, found a damaged one: {error}") from error
    _check(report, str(folder))
    return model.eval().requires_grad_(False)


def load_state(
    model_class: Any, config: Any, state: dict[str, torch.Tensor], dtype: str, where: str, **options: Any
) -> Any:
    """A model of this config with these tensors; as ``load_model``. ``where`` names the tensors' origin in errors."""
    model, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    _check(report, where)
    return model.eval().requires_grad_(False)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or torch file, on the CPU, memory-mapped where the format allows it.

    A checkpoint that keeps them under ``state_dict`` is unwrapped, and the prefix ``module.`` of a parallel run is
    dropped.

    Raises:
        RewardError: damaged, or anything but tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise RewardError(
            f"{path}: expected tensors in safetensors or torch's weights_only format: {reason}"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise RewardError(f"{path}: expected tensors by name, found something else")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def read_tensor(files: Sequence[Path], name: str) -> torch.Tensor:
    """One tensor of a model's files, as it is stored.

    Raises:
        RewardError: none of the files has it.
    """
    for path in files:
        if path.suffix != ".safetensors":
            found = read_tensors(path)
            if name in found:
                return found[name]
            continue
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118 - not a mapping
                return file.get_tensor(name)
    raise RewardError(f"{files[0].parent}: missing key: {name}")


def check_names(found: set[str], expected: set[str], where: str) -> None:
    """Raise RewardError unless both are the same; names three of each kind at most."""
    for problem, names in (("missing", expected - found), ("unexpected", found - expected)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise RewardError(f"{where}: {problem} keys: {', '.join(sorted(names)[:3])}{more}")


def heads_of_64(width: int, where: str) -> int:
    """How many heads of 64 channels a width has: what the original ViTs and BERTs have, and checkpoints do not say.

    Raises:
        RewardError: no whole number.
    """
    if width == 0 or width % 64:
        raise RewardError(f"{where}: expected a width that is a multiple of 64, found {width}")
    return width // 64


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        RewardError: no file, not JSON, not an object.
    """
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        raise RewardError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise RewardError(f"{path}: not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise RewardError(f"{path}: expected an object, found {type(facts).__name__}")
    return facts


def _check(report: dict[str, Any], where: str) -> None:
    check_names(set(report["unexpected_keys"]), set(), where)
    check_names(set(), set(report["missing_keys"]), where)
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, found, expected = mismatched[0]
        raise RewardError(f"{where}: {name}: expected shape {tuple(expected)}, found {tuple(found)}")
