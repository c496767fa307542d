"""What the sources of an import say about the policy's config, and what they leave to be asked for.

Each choice is noted in the report with where it came from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast, T5Config

from mentor_base.checkpoint import check_config, model_folder, read_json
from mentor_base.config import SIZES, MentorConfig
from mentor_base.data.schema import IMAGE_MARK
from mentor_base.errors import UserError
from mentor_base.interchange.match import decoder_size, looks_like, size_name
from mentor_base.interchange.names import LLAMAGEN, OURS, VQ16, Layout
from mentor_base.interchange.options import ImportOptions
from mentor_base.interchange.report import ImportReport
from mentor_base.interchange.weight_files import WeightFile, read_weights
from mentor_base.processor import TOKENIZER_FILE
from mentor_base.vq import VQConfig

PREFIX_ROTATION = {"gpt": "zero", "gpt-zero-fix": "identity", "gpt-empty-fix": "identity"}  # MENTOR's argument --fix
PARTS_OF_LLAMAGEN = {"vision_tower": "clip", "factorised_codebook": False}  # its connector is yet to be trained
PARTS_OF_MENTOR = {**PARTS_OF_LLAMAGEN, "connector": "mlp"}
MARKS = ("decoder.embedding.weight", "decoder.blocks.0.qkv.weight", "decoder.norm.weight")  # of any decoder
DECIDED = (
    "vq_config", "t5_config", "clip_config", "vocab_size", "placeholder_id", "pad_token_id", "eos_token_id",
    "context_length", "size",
)  # fmt: skip
GUIDES = ("qformer_config.vocab_size", "qformer_config.pad_token_id")  # the text tokenizer's: guides are its texts too


def policy_config(
    file: WeightFile, layout: Layout, options: ImportOptions, vq: VQConfig, text: Any, report: ImportReport
) -> MentorConfig:
    for name in options.options:
        if name.partition(".")[0] in DECIDED or name in GUIDES:
            raise UserError(f"--option {name}: expected no value, the sources or another option decide it")
    fields: dict[str, Any] = {
        "prefix_rotation": _prefix_rotation(file, layout, options, report),
        **options.options,
        "vq_config": vq,
        "placeholder_id": text.convert_tokens_to_ids(IMAGE_MARK),
        "pad_token_id": text.pad_token_id,
        "eos_token_id": text.eos_token_id,
    }
    if options.text_encoder is not None:
        fields["t5_config"] = _part_config(T5Config, options.text_encoder, "--text-encoder")
    if options.vision is not None:
        fields["clip_config"] = _part_config(CLIPVisionConfig, options.vision, "--vision")
    if options.options.get("connector") == "query":
        fields |= dict(zip(GUIDES, (len(text), text.pad_token_id), strict=True))
    report.choices |= {f"option {name}": str(value) for name, value in options.options.items()}
    config = MentorConfig.of_size(_size(file, layout, options, report), **fields)
    for name, expected in (PARTS_OF_LLAMAGEN if layout is LLAMAGEN else PARTS_OF_MENTOR).items():
        if getattr(config, name) != expected:
            raise UserError(f"--option {name}: expected {expected!r}, as {layout.title} has it")
    return config


def _size(file: WeightFile, layout: Layout, options: ImportOptions, report: ImportReport) -> str:
    if options.size is not None:
        report.choices["size"] = f"{options.size}, as asked for"
        return options.size
    found = decoder_size(file.tensors, layout)
    name = size_name(*found) if found else None
    if found is None:
        absent = [key for part in MARKS for key in layout.keys(part) if key not in file.tensors]
        raise UserError(
            f"{file.path}: expected a {layout.title} checkpoint, found no {', '.join(map(repr, absent))}; "
            f"{looks_like(file.tensors)}"
        )
    if name is None:
        known = ", ".join(f"{size} ({row['hidden_size']}, {row['num_hidden_layers']})" for size, row in SIZES.items())
        raise UserError(
            f"{file.path}: expected a size of the table, found width {found[0]} and {found[1]} layers; known: {known}"
        )
    report.choices["size"] = f"{name}, from the shapes: width {found[0]}, {found[1]} layers"
    return name


def image_size(file: WeightFile, own: MentorConfig | None, options: ImportOptions, report: ImportReport) -> int:
    stored = file.arguments.get("image_size") if own is None else own.vq_config.image_size
    side = options.image_size or stored
    if not isinstance(side, int):
        raise UserError(
            "--image-size: expected the side of the drawn picture in pixels (256 or 512), which weights do not say"
        )
    report.choices["image size"] = f"{side}, {'as asked for' if options.image_size else 'as the source says'}"
    return side


def _prefix_rotation(file: WeightFile, layout: Layout, options: ImportOptions, report: ImportReport) -> str:
    """From the arguments of MENTOR's training; else what each project's original code does."""
    asked = options.options.get("prefix_rotation")
    variant = file.arguments.get("fix")
    if asked is not None:
        report.choices["prefix rotation"] = f"{asked}, as asked for"
        return str(asked)
    if variant in PREFIX_ROTATION:
        report.choices["prefix rotation"] = f"{PREFIX_ROTATION[variant]}, since the source's args say fix={variant}"
        return PREFIX_ROTATION[variant]
    usual = "zero" if layout is LLAMAGEN else "identity"
    report.choices["prefix rotation"] = f"{usual}, as {layout.title} was trained"
    return usual


def unconditional_rows(file: WeightFile, layout: Layout, config: MentorConfig) -> int:
    """Rows of the source's unconditional table; where it has none, the config's, for the error to come."""
    table = file.tensors.get(layout.keys("decoder.uncond")[0])
    return len(table) if table is not None and table.dim() == 2 else config.context_length


def own_config(folder: Path) -> MentorConfig:
    check_config(folder, MentorConfig.model_type)
    config: MentorConfig = MentorConfig.from_pretrained(str(folder))
    return config


def _part_config(part: type[Any], folder: Path, flag: str) -> Any:
    """The config of T5 or of CLIP's vision tower, in a folder of either the part or the whole model."""
    facts = _facts(folder)
    known = {T5Config: ("t5",), CLIPVisionConfig: ("clip", "clip_vision_model")}[part]
    if facts.get("model_type") not in known:
        raise UserError(
            f"{flag} {folder}: expected a model of type {' or '.join(known)}, found '{facts.get('model_type')}'"
        )
    config = part.from_pretrained(str(folder))
    config._name_or_path = ""  # a saved policy names no folder of the machine that made it
    return config


def _facts(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"{folder}: expected a model folder with config.json, found none")
    return read_json(file)


def tokenizer_source(path: Path, side: int | None) -> tuple[VQConfig, WeightFile, Layout]:
    """One of our tokenizer folders, or a VQ-16 file."""
    ours = path.is_dir()
    if ours:
        folder = model_folder(path)
        check_config(folder, VQConfig.model_type)
        config: VQConfig = VQConfig.from_pretrained(str(folder))
        config._name_or_path = ""
        file = read_weights(folder)
    else:
        config, file = VQConfig(), read_weights(path)
    set_image_size(config, side or config.image_size)
    return config, file, OURS if ours else VQ16


def set_image_size(vq: VQConfig, side: int) -> None:
    """Have pictures of ``side`` pixels drawn; a convolutional tokenizer takes any whole number of its cells."""
    if side % vq.stride:
        raise UserError(f"--image-size: expected a multiple of {vq.stride}, found {side}")
    vq.image_size = side


def text_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The text tokenizer of a folder, with ``<image>`` added behind its vocabulary where it is not in it."""
    if not (folder / TOKENIZER_FILE).exists():
        raise UserError(f"{folder}: expected a text tokenizer ({TOKENIZER_FILE}), found none; see --tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: expected a tokenizer with padding and end-of-text tokens, found none")
    if IMAGE_MARK not in tokenizer.get_vocab():
        mark = AddedToken(IMAGE_MARK, normalized=False, special=True)
        tokenizer.add_special_tokens({"extra_special_tokens": [mark]}, replace_extra_special_tokens=False)
    return tokenizer


def check_placeholder(config: MentorConfig, text: PreTrainedTokenizerFast) -> None:
    found, rows = text.convert_tokens_to_ids(IMAGE_MARK), config.t5_config.vocab_size
    if found != config.placeholder_id or found >= rows:
        raise UserError(
            f"--tokenizer: expected '{IMAGE_MARK}' as token {config.placeholder_id} of a table of {rows}, found {found}"
        )
