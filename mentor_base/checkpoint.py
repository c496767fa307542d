"""Policies and tokenizers on disk: strict loading, storage in float16, and the reference checkpoints' names.

| LlamaGen t2i | here (under ``decoder.``) |
|---|---|
| cls_embedding.uncond_embedding | uncond |
| cls_embedding.cap_proj.fc{1,2} | cap_proj.fc{1,2} |
| tok_embeddings | embedding |
| layers.i.attention.{wqkv,wo} | blocks.i.{qkv,out} |
| layers.i.feed_forward.{w1,w3} | blocks.i.gate_up, w1 above w3 |
| layers.i.feed_forward.w2 | blocks.i.down |
| layers.i.{attention_norm,ffn_norm} | blocks.i.{attention_norm,ffn_norm} |
| norm, output | norm, head |

| MENTOR adds | here (under ``encoder.``) |
|---|---|
| multimodal_encoder.vision_model.vision_tower.vision_model | vision.clip |
| multimodal_encoder.language_projection.{0,2} | connector.fc{1,2} |
| multimodal_encoder.language_model | text |

The LlamaGen decoder was trained with ``prefix_rotation="zero"``, MENTOR's with "identity" (config.py): the weights do
not carry this fact, the caller's config does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from mentor_base.errors import UserError, nearest

if TYPE_CHECKING:
    from mentor_base.config import MentorConfig
    from mentor_base.model import MentorForConditionalGeneration
    from mentor_base.processor import MentorProcessor
    from mentor_base.vq import VQModel

DTYPES = {"float32": torch.float32, "float16": torch.float16}
RENAMES = (
    (r"^cls_embedding\.uncond_embedding$", "decoder.uncond"),
    (r"^cls_embedding\.cap_proj\.", "decoder.cap_proj."),
    (r"^tok_embeddings\.", "decoder.embedding."),
    (r"^layers\.(\d+)\.attention\.wqkv\.", r"decoder.blocks.\1.qkv."),
    (r"^layers\.(\d+)\.attention\.wo\.", r"decoder.blocks.\1.out."),
    (r"^layers\.(\d+)\.feed_forward\.w2\.", r"decoder.blocks.\1.down."),
    (r"^layers\.(\d+)\.(attention_norm|ffn_norm)\.", r"decoder.blocks.\1.\2."),
    (r"^norm\.", "decoder.norm."),
    (r"^output\.", "decoder.head."),
    (r"^multimodal_encoder\.vision_model\.vision_tower\.vision_model\.", "encoder.vision.clip."),
    (r"^multimodal_encoder\.language_projection\.0\.", "encoder.connector.fc1."),
    (r"^multimodal_encoder\.language_projection\.2\.", "encoder.connector.fc2."),
    (r"^multimodal_encoder\.language_model\.", "encoder.text."),
)
GATE = re.compile(r"^layers\.(\d+)\.feed_forward\.w1\.weight$")


def save_policy(
    model: MentorForConditionalGeneration,
    processor: MentorProcessor,
    folder: str | Path,
    dtype: str = "float32",
) -> None:
    """Write a folder that ``load_policy`` and both ``from_pretrained`` take; from float16 too they load float32."""
    if dtype not in DTYPES:
        raise UserError(f"dtype: unknown '{dtype}'; {nearest(dtype, DTYPES)}")
    model.config.vq_config._name_or_path = ""  # transformers would publish where the tokenizer once lay
    state = model.state_dict()
    copies = {value.data_ptr(): value.to(DTYPES[dtype]) for value in state.values() if value.is_floating_point()}
    state = {key: copies.get(value.data_ptr(), value) for key, value in state.items()}  # tied tensors stay tied
    with quiet():
        model.save_pretrained(str(folder), state_dict=state)
    processor.save_pretrained(folder)


def load_policy(path: str | Path) -> tuple[MentorForConditionalGeneration, MentorProcessor]:
    """A policy from an exported folder or a run folder (its final/): float32, eval mode.

    Raises:
        UserError: nothing there, or missing, unknown or misshapen tensors.
    """
    from mentor_base.model import MentorForConditionalGeneration
    from mentor_base.processor import MentorProcessor

    folder = model_folder(path)
    model = MentorForConditionalGeneration.from_pretrained(str(folder))
    return model.eval(), MentorProcessor.from_pretrained(folder)


def load_vq(path: str | Path) -> VQModel:
    """A tokenizer from its folder or its run folder: float32, eval mode, frozen."""
    from mentor_base.vq import VQModel

    model = strict_from_pretrained(VQModel.from_pretrained, str(model_folder(path)))
    model.requires_grad_(False)
    vq: VQModel = model.eval()
    return vq


def model_folder(path: str | Path) -> Path:
    """The folder that holds config.json: ``path`` itself, or final/ of a run."""
    for folder in (Path(path), Path(path) / "final"):
        if (folder / "config.json").exists():
            return folder
    raise UserError(
        f"{path}: expected a model folder or a finished run, found neither config.json nor final/config.json"
    )


def strict_from_pretrained(load: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    """transformers' ``from_pretrained``, in float32 by default, with every missing or surplus tensor an error."""
    check_config(path)
    kwargs.setdefault("dtype", torch.float32)
    wants_report = kwargs.pop("output_loading_info", False)
    try:
        with quiet():
            model, report = load(path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    except SafetensorError as error:
        raise UserError(f"{path}: expected whole safetensors files, found a damaged one: {error}") from error
    for key, found, expected in report["mismatched_keys"]:
        raise UserError(f"{path}: '{key}': expected shape {tuple(expected)}, found {tuple(found)}")
    check_names(str(path), report["missing_keys"], report["unexpected_keys"])
    return (model, report) if wants_report else model


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


def check_config(path: Any) -> None:
    """Refuse keys of a local config.json that no field of its model type has; transformers would keep them silently."""
    from mentor_base.config import MentorConfig, field_names
    from mentor_base.vq import VQConfig

    file = Path(str(path)) / "config.json"
    if not file.exists():
        return
    facts = json.loads(file.read_text(encoding="utf-8"))
    for config in (MentorConfig, VQConfig):
        if facts.get("model_type") == config.model_type:
            known = {"model_type", *field_names(config)}
            for key in facts:
                if key not in known:
                    raise UserError(f"{file}: unknown field '{key}'; {nearest(key, known)}")


def check_names(where: str, missing: Iterable[str], unknown: Iterable[str]) -> None:
    """Raise on the first tensor that is absent or surplus."""
    absent, surplus = sorted(missing), sorted(unknown)
    if surplus:
        hint = f"; {nearest(surplus[0], absent)}" if absent else ""
        raise UserError(f"{where}: {len(surplus)} unknown tensors, the first is '{surplus[0]}'{hint}")
    if absent:
        raise UserError(f"{where}: {len(absent)} tensors are missing, the first is '{absent[0]}'")


def import_llamagen(state: Mapping[str, torch.Tensor], config: MentorConfig) -> dict[str, torch.Tensor]:
    """A LlamaGen t2i state dict under the names of ``Decoder`` (no ``decoder.`` in front).

    Raises:
        UserError: missing, unknown or misshapen tensors.
    """
    renamed = {key.removeprefix("decoder."): tensor for key, tensor in _renamed(state).items()}
    _check_against(renamed, _shapes(config, "decoder."), "LlamaGen checkpoint")
    return renamed


def import_mentor(state: Mapping[str, torch.Tensor], config: MentorConfig) -> dict[str, torch.Tensor]:
    """A MENTOR state dict (decoder and multimodal encoder) under our names; all but ``vq.*``.

    Raises:
        UserError: missing, unknown or misshapen tensors.
    """
    renamed = _renamed(state)
    wanted = {key: shape for key, shape in _shapes(config, "").items() if not key.startswith("vq.")}
    _check_against(renamed, wanted, "MENTOR checkpoint")
    return renamed


def unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """The state dict inside LlamaGen's and MENTOR's wrappers ("model", "module", "state_dict", or none)."""
    for key in ("model", "module", "state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            inner: Mapping[str, torch.Tensor] = checkpoint[key]
            return inner
    return checkpoint


def _renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if ".feed_forward.w3." in key:
            continue  # goes with its w1
        gate = GATE.match(key)
        if gate:
            up = state.get(key.replace(".w1.", ".w3."))
            if up is None:
                raise UserError(f"checkpoint: '{key}' has no '{key.replace('.w1.', '.w3.')}' beside it")
            renamed[f"decoder.blocks.{gate[1]}.gate_up.weight"] = torch.cat([tensor, up])
            continue
        for pattern, name in RENAMES:
            key, hits = re.subn(pattern, name, key)
            if hits:
                break
        renamed[key] = tensor
    return renamed


def _shapes(config: MentorConfig, prefix: str) -> dict[str, torch.Size]:
    from mentor_base.model import MentorForConditionalGeneration

    with torch.device("meta"):
        state = MentorForConditionalGeneration(config).state_dict()
    return {key.removeprefix(prefix): tensor.shape for key, tensor in state.items() if key.startswith(prefix)}


def _check_against(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Size], where: str) -> None:
    check_names(where, wanted.keys() - state.keys(), state.keys() - wanted.keys())
    for key, tensor in state.items():
        if tensor.shape != wanted[key]:
            raise UserError(f"{where}: '{key}': expected shape {tuple(wanted[key])}, found {tuple(tensor.shape)}")
