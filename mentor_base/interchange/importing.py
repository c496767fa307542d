"""Checkpoints of others as folders of ours: LlamaGen t2i, MENTOR, VQ-16, and our own with changes.

A MENTOR checkpoint holds decoder and multimodal encoder; a LlamaGen checkpoint the decoder alone, so that T5 and CLIP
come from transformers folders and the connector is new: an MLP, or queries with ``connector=query`` among the options.
Neither holds the image tokenizer or the text tokenizer. What the weights do not say (image size, rotation of the
prefix, rows of the unconditional table) is taken from the arguments that MENTOR stores, or asked for, and stands in
the report either way.

Against MENTOR: it copies LlamaGen's 120 unconditional rows to the front of 512 although its left padding reads the
tail, so that most of them are never seen; here ``keep_rows`` says where they go.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from mentor_base.checkpoint import DTYPES, model_folder
from mentor_base.config import MentorConfig
from mentor_base.errors import UserError
from mentor_base.interchange.facts import (
    check_placeholder,
    image_size,
    own_config,
    policy_config,
    set_image_size,
    text_tokenizer,
    tokenizer_source,
    unconditional_rows,
)
from mentor_base.interchange.match import Blueprint, Tensors, gather
from mentor_base.interchange.names import CLIP, CLIP_VISION, LLAMAGEN, MENTOR, PROJECTOR, T5, VQ16, Layout
from mentor_base.interchange.options import LAYOUTS, ImportOptions, Kind
from mentor_base.interchange.report import ImportReport, Part, told
from mentor_base.interchange.weight_files import Pieces, WeightFile, read_weights, write_safetensors
from mentor_base.model import PARTS, MentorForConditionalGeneration
from mentor_base.processor import MentorProcessor
from mentor_base.vq import VQConfig, VQModel

WEIGHTS = "model.safetensors"


def import_checkpoint(source: str | Path, kind: Kind, folder: Path, options: ImportOptions) -> ImportReport:
    """Write ``source`` to ``folder`` as load_policy or load_vq reads it, with the report beside it.

    Memory: the mapped source and one tensor.

    Raises:
        UserError: any tensor left over, missing or misshapen, or a choice that has to be made.
    """
    options.check(kind)
    report = ImportReport(told(Path(source)), kind)
    config: MentorConfig | VQConfig
    if kind == "vq":
        config, tensors = _vq_folder(Path(source), options, report)
    else:
        config, tensors, processor = _policy(Path(source), kind, options, report)
        processor.save_pretrained(folder)
    config.save_pretrained(str(folder))
    report.choices["dtype"] = options.dtype or "as the sources have it"
    write_safetensors(folder / WEIGHTS, tensors, DTYPES.get(options.dtype or ""))
    report.write(folder)
    return report


# ---- state dicts in memory ---------------------------------------------------------------------------------------


def import_llamagen(state: Tensors, config: MentorConfig) -> dict[str, torch.Tensor]:
    """A LlamaGen t2i state dict under the names of ``Decoder`` (no ``decoder.`` in front).

    Raises:
        UserError: missing, unknown or misshapen tensors.
    """
    found, _ = gather(state, LLAMAGEN, Blueprint.of(config).below("decoder."), "LlamaGen checkpoint")
    return {name.removeprefix("decoder."): joined(pieces) for name, pieces in found.items()}


def import_mentor(state: Tensors, config: MentorConfig) -> dict[str, torch.Tensor]:
    """A MENTOR state dict (decoder and multimodal encoder) under our names; all but ``vq.*``.

    Raises:
        UserError: missing, unknown or misshapen tensors.
    """
    plan = Blueprint.of(config)
    found, _ = gather(state, MENTOR, plan.below("decoder.", "encoder."), "MENTOR checkpoint", plan.tied)
    whole = {name: joined(pieces) for name, pieces in found.items()}
    return {**whole, **{alias: whole[name] for alias, name in plan.tied.items() if name in whole}}


def import_vq16(state: Tensors, config: VQConfig | None = None) -> dict[str, torch.Tensor]:
    """A VQ-16 state dict under the names of ``VQModel``; ``config`` defaults to VQ-16's sizes.

    Raises:
        UserError: missing, unknown or misshapen tensors.
    """
    found, _ = gather(state, VQ16, vq_shapes(config or VQConfig()), "VQ-16 checkpoint")
    return {name: joined(pieces) for name, pieces in found.items()}


def joined(pieces: Pieces) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def vq_shapes(config: VQConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a tokenizer's tensors."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in VQModel(config).state_dict().items()}


def _vq_folder(source: Path, options: ImportOptions, report: ImportReport) -> tuple[VQConfig, dict[str, Pieces]]:
    config, file, layout = tokenizer_source(source, options.image_size)
    found, left_out = gather(file.tensors, layout, vq_shapes(config), str(file.path))
    report.left_out += [f"{told(file.path)}: {key}" for key in left_out]
    report.parts.append(Part.of("vq", told(file.path), found))
    report.choices["image size"] = f"{config.image_size}; any multiple of {config.stride} will do"
    config.architectures = [VQModel.__name__]
    return config, found


# ---- a policy from its sources -----------------------------------------------------------------------------------


class Contribution(NamedTuple):
    """Tensors that one file gives: all of ours whose names start with one of ``starts``."""

    starts: tuple[str, ...]
    file: WeightFile
    layout: Layout


def _policy(
    source: Path, kind: Kind, options: ImportOptions, report: ImportReport
) -> tuple[MentorConfig, dict[str, Pieces], MentorProcessor]:
    path = model_folder(source) if kind == "hf" else source
    file = read_weights(path)
    report.choices["wrapper"] = f"'{file.wrapper}'" if file.wrapper else "none"
    report.left_out += [f"{told(path)}: entry '{name}' beside the weights" for name in file.beside if name != "args"]
    config = own_config(path) if kind == "hf" else None
    text = text_tokenizer(options.tokenizer or options.text_encoder or path)
    side = image_size(file, config, options, report)
    vq = tokenizer_source(options.vq, side) if options.vq else None
    if config is None:
        assert vq is not None  # NEEDS
        config = policy_config(file, LAYOUTS[kind], options, vq[0], text, report)
    else:
        config.vq_config = vq[0] if vq else config.vq_config
        if config.vq_config.codebook_size != config.vocab_size:
            raise UserError(
                f"--vq: expected a tokenizer of {config.vocab_size} codes, as the policy has it, found one of "
                f"{config.vq_config.codebook_size}"
            )
        set_image_size(config.vq_config, side)
    rows = unconditional_rows(file, LAYOUTS[kind], config)
    config.context_length = options.prefix_rows or rows
    config.architectures = [MentorForConditionalGeneration.__name__]
    check_placeholder(config, text)
    plan = Blueprint.of(config)
    tensors = _collect(plan, _contributions(kind, file, options, vq), rows, report)
    _add_fresh_connector(plan, tensors, options.seed, report)
    tensors["decoder.uncond"] = _fitted_rows(tensors["decoder.uncond"], config, options, report)
    own_guides = kind == "hf" and config.connector == "query"
    guides = MentorProcessor.from_pretrained(path).guide_tokenizer if own_guides else text
    return config, tensors, MentorProcessor.of(config, text, guides)


def _contributions(
    kind: Kind, file: WeightFile, options: ImportOptions, vq: tuple[VQConfig, WeightFile, Layout] | None
) -> list[Contribution]:
    """Where each part comes from."""
    parts = {"llamagen": ("decoder.",), "mentor": ("decoder.", "encoder."), "hf": ("decoder.", "encoder.", "vq.")}[kind]
    layout = LAYOUTS[kind]
    if kind == "hf" and vq is not None:
        parts, layout = parts[:2], replace(layout, left_out=(r"^vq\.",))
    found = [Contribution(parts, file, layout)]
    if options.text_encoder is not None:
        found.append(Contribution(("encoder.text.",), read_weights(options.text_encoder), T5))
    if options.vision is not None:
        tower = read_weights(options.vision)
        whole = any(key.startswith("vision_model.") for key in tower.tensors)
        found.append(Contribution(("encoder.vision.",), tower, CLIP if whole else CLIP_VISION))
    if options.connector is not None:
        found.append(Contribution(("encoder.connector.",), read_weights(options.connector), PROJECTOR))
    if vq is not None:
        found.append(Contribution(("vq.",), vq[1], vq[2].below("vq.")))
    return found


def _collect(plan: Blueprint, contributions: list[Contribution], rows: int, report: ImportReport) -> dict[str, Pieces]:
    tensors: dict[str, Pieces] = {}
    for starts, file, layout in contributions:
        shapes = plan.below(*starts)
        if "decoder.uncond" in shapes:
            shapes["decoder.uncond"] = (rows, plan.model.config.text_width)
        found, left_out = gather(file.tensors, layout, shapes, str(file.path), plan.tied)
        report.left_out += [f"{told(file.path)}: {key}" for key in left_out]
        for place in PARTS.values():
            own = {name: pieces for name, pieces in found.items() if name.startswith(f"{place}.")}
            if own:
                report.parts.append(Part.of(place, told(file.path), own))
        tensors |= found
    return tensors


def _add_fresh_connector(plan: Blueprint, tensors: dict[str, Pieces], seed: int, report: ImportReport) -> None:
    """Initialise the connector as a new model's, where no source has one."""
    wanted = [name for name in plan.below("encoder.connector.") if name not in tensors]
    if not wanted:
        return
    encoder = plan.model.encoder
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        connector = type(encoder.connector)(plan.model.config, encoder.vision.width)
        connector.apply(plan.model._init_weights)
    state = connector.state_dict()
    for name in wanted:
        tensors[name] = (state[name.removeprefix("encoder.connector.")],)
        report.fresh[f"{name} {list(plan.shapes[name])}"] = f"as in a new model, seed {seed}"


def _fitted_rows(pieces: Pieces, config: MentorConfig, options: ImportOptions, report: ImportReport) -> Pieces:
    """The unconditional table with ``config.context_length`` rows; new ones N(0, 1 / C), as both references draw them.

    Raises:
        UserError: the number changes and nothing says which end keeps the rows.
    """
    (table,), rows = pieces, config.context_length
    found = len(table)
    if rows == found:
        report.choices["unconditional rows"] = f"{rows}, as the source has them"
        return pieces
    if options.keep_rows is None:
        raise UserError(
            f"--keep-rows: expected 'front' or 'tail', since the source has {found} unconditional rows and "
            f"{rows} are asked for (left padding reads the tail)"
        )
    at_front = options.keep_rows == "front"
    if rows < found:
        report.choices["unconditional rows"] = f"{rows}, the {options.keep_rows} of {found}"
        return (table[:rows] if at_front else table[found - rows :],)
    generator = torch.Generator().manual_seed(options.seed)
    scale = config.text_width**-0.5
    new = (torch.randn(rows - found, config.text_width, generator=generator) * scale).to(table.dtype)
    report.choices["unconditional rows"] = f"{rows}, the source's {found} at the {options.keep_rows}"
    first, last = (found, rows - 1) if at_front else (0, rows - found - 1)
    report.fresh[f"decoder.uncond, rows {first} to {last}"] = f"N(0, 1 / {config.text_width}), seed {options.seed}"
    return (table, new) if at_front else (new, table)
