"""Policies and tokenizers on disk: strict loading, storage in half precision.

Checkpoints of others: interchange/importing.py and interchange/exporting.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.integrations import deepspeed
from transformers.utils import logging

from mentor_base.errors import UserError, nearest
from mentor_base.misfit import Misfit

if TYPE_CHECKING:
    from mentor_base.config import MentorConfig
    from mentor_base.model import MentorForConditionalGeneration
    from mentor_base.processor import MentorProcessor
    from mentor_base.vq import VQModel

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORED = "stored"


def save_policy(
    model: MentorForConditionalGeneration,
    processor: MentorProcessor,
    folder: str | Path,
    dtype: str = "float32",
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a folder that ``load_policy`` and both ``from_pretrained`` take; from float16 too they load float32.

    ``state`` are other tensors than the model's own: gathered ones, or with adapters merged into them.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: unknown '{dtype}'; {nearest(dtype, DTYPES)}")
    model.config.vq_config._name_or_path = ""  # transformers would publish where the tokenizer once lay
    state = model.state_dict() if state is None else state
    state = {key: value.to(DTYPES[dtype]) if value.is_floating_point() else value for key, value in state.items()}
    with quiet():
        model.save_pretrained(str(folder), state_dict=state)
    processor.save_pretrained(folder)


def load_policy(path: str | Path, dtype: str = "float32") -> tuple[MentorForConditionalGeneration, MentorProcessor]:
    """A policy from an exported folder or a run folder (its final/): eval mode, in ``dtype``.

    Where the file has that dtype its tensors are mapped, not read: memory grows by the size of the file at most. A
    conversion takes what it makes, and the mapped file beside it. "stored" keeps the file's dtype.

    Raises:
        UserError: nothing there, or missing, unknown or misshapen tensors; "stored" with floats of several kinds.
    """
    from mentor_base.model import MentorForConditionalGeneration
    from mentor_base.processor import GUIDE_FOLDER, MentorProcessor

    folder = model_folder(path)
    kinds = {**DTYPES, STORED: stored_dtype(folder)} if dtype == STORED else DTYPES
    if dtype not in kinds:
        raise UserError(f"dtype: unknown '{dtype}'; {nearest(dtype, [*DTYPES, STORED])}")
    model = MentorForConditionalGeneration.from_pretrained(str(folder), dtype=kinds[dtype])
    processor = MentorProcessor.from_pretrained(folder)
    if model.config.connector == "query" and processor.guide_tokenizer is None:
        raise UserError(
            f"{folder}: expected the tokenizer of the query connector's texts ({GUIDE_FOLDER}/), found none"
        )
    return model.eval(), processor


def policy_config(path: str | Path) -> MentorConfig:
    """The sizes of a policy in an exported folder or a run folder; reads no weight.

    Raises:
        UserError: nothing there, another kind of model, or an unknown field.
    """
    from mentor_base.config import MentorConfig

    folder = model_folder(path)
    check_config(folder, MentorConfig.model_type)
    config: MentorConfig = MentorConfig.from_pretrained(str(folder))
    return config


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of all floats in a model folder.

    Raises:
        UserError: several of them.
    """
    from mentor_base.interchange.weight_files import read_weights

    found = {value.dtype for value in read_weights(folder).tensors.values() if value.is_floating_point()}
    if len(found) != 1:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in found))
        raise UserError(f"{folder}: expected floats of one dtype, found {names or 'none'}; ask for one of them")
    return found.pop()


def load_vq(path: str | Path) -> VQModel:
    """A tokenizer from its folder or its run folder: float32, eval mode, frozen."""
    from mentor_base.vq import VQConfig, VQModel

    model = strict_from_pretrained(VQModel.from_pretrained, VQConfig.model_type, str(model_folder(path)))
    model.requires_grad_(False)
    vq: VQModel = model.eval()
    return vq


def load_tokenizer_of(path: str | Path) -> VQModel:
    """A tokenizer from its own folder, or the one inside a policy's folder: float32, eval mode, frozen."""
    from mentor_base.config import MentorConfig

    folder = model_folder(path)
    kind = read_json(folder / "config.json").get("model_type")
    return load_policy(folder)[0].vq if kind == MentorConfig.model_type else load_vq(folder)


def model_folder(path: str | Path) -> Path:
    """The folder that holds config.json: ``path`` itself, or final/ of a run."""
    for folder in (Path(path), Path(path) / "final"):
        if (folder / "config.json").exists():
            return folder
    if Path(path).is_file():
        raise UserError(
            f"{path}: expected a model folder, found a file; `mentor import` makes a folder of a checkpoint"
        )
    raise UserError(
        f"{path}: expected a model folder or a finished run, found neither config.json nor final/config.json"
    )


def strict_from_pretrained(load: Callable[..., Any], kind: str, path: Any, *args: Any, **kwargs: Any) -> Any:
    """transformers' ``from_pretrained``, in float32 by default, with every missing or surplus tensor an error.

    Args:
        kind: the ``model_type`` that config.json has to have.

    Raises:
        UserError: another kind of model, no weights, a config that is none; or the first tensors that do not fit, with
            what the weights look like.
    """
    check_config(path, kind)
    kwargs.setdefault("dtype", torch.float32)
    wants_report = kwargs.pop("output_loading_info", False)
    try:
        with quiet(), loaded_whole():
            model, report = load(path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    except SafetensorError as error:
        raise UserError(f"{path}: expected whole safetensors files, found a damaged one: {error}") from error
    except (OSError, StrictDataclassError) as error:  # no weights there; a value of another type in config.json
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    misfit = Misfit()
    for key, found, expected in sorted(report["mismatched_keys"]):
        misfit.note_shape(key, expected, found)
    misfit.note_names(sorted(report["unexpected_keys"]), sorted(report["missing_keys"]))
    misfit.check(str(path), lambda: _looks(path))
    return (model, report) if wants_report else model


def _looks(folder: Any) -> str:
    """What the weights in a folder are, by names and shapes; read only when they do not fit."""
    from mentor_base.interchange.match import looks_like
    from mentor_base.interchange.weight_files import read_weights

    return looks_like(read_weights(folder).tensors)


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Once it has met ZeRO-3, transformers deals out what it loads: empty tensors until an engine comes, which a T5
    beside the policy never meets, and which are no tokenizer to keep. Policies are loaded whole; the engine deals out.
    """
    held = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = held


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars and loading report: what they tell, we raise."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_config(path: Any, kind: str) -> None:
    """Refuse a local config.json of another ``model_type``, and keys that no field has: transformers takes both.

    Raises:
        UserError: names what was found.
    """
    from mentor_base.config import MentorConfig, field_names
    from mentor_base.vq import VQConfig

    file = Path(str(path)) / "config.json"
    if not file.exists():
        return
    facts = read_json(file)
    found = facts.get("model_type")
    if found != kind:
        named = f"'{found}'" if found else "no model_type"
        raise UserError(f"{path}: expected a model of type '{kind}', found {named}")
    for config in (MentorConfig, VQConfig):
        if found == config.model_type:
            known = {"model_type", *field_names(config)}
            for key in facts:
                if key not in known:
                    raise UserError(f"{file}: unknown field '{key}'; {nearest(key, known)}")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: no JSON, or something else than an object.
    """
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: expected JSON, found something else: {error}") from error
    if not isinstance(facts, dict):
        raise UserError(f"{file}: expected a JSON object, found {type(facts).__name__}")
    return facts
