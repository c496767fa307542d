"""MentorConfig, and the table of sizes.

Deviations from MENTOR / LlamaGen, all of them options that are off at full size and on in ``tiny``:

- ``vision_tower="tokenizer"``: picture features are the frozen VQ encoder's trunk instead of CLIP's.
- ``factorised_codebook``: token embedding and head get a part that is linear in the tokenizer's codebook; it folds
  into plain weights (``MentorForConditionalGeneration.fold``).
- ``reference_positions="grid"``: patch p of a reference carries the rotation of image cell p, not the identity.
- ``image_positions="target"``: an image input carries the rotation of the cell that it predicts, not of its own.
- ``uncond="learned"``: the unconditional table is a parameter; in both references it is a buffer that never trains.
- ``rope_theta`` 100 instead of 10000: a grid of 8 cells has no use for long wavelengths.

``prefix_rotation="zero"`` is no deviation but LlamaGen's own bug, to be used with LlamaGen's own weights only: its
rotation table holds zeros for the prefix, so that prefix queries and keys vanish. MENTOR uses "identity".
"""

from __future__ import annotations

import dataclasses
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, InstructBlipQFormerConfig, PreTrainedConfig, T5Config
from transformers.configuration_utils import SubConfigSpec

from mentor_base.errors import UserError, nearest
from mentor_base.vq import VQConfig

CHOICES = {
    "vision_tower": ("clip", "tokenizer"),
    "connector": ("mlp", "query"),
    "reference_positions": ("prefix", "grid"),
    "image_positions": ("input", "target"),
    "prefix_rotation": ("identity", "zero"),
    "uncond": ("fixed", "learned"),
    "connector_activation": ("gelu", "silu"),
}
PARTS: dict[str, type[PreTrainedConfig]] = {
    "vq_config": VQConfig,
    "clip_config": CLIPVisionConfig,
    "t5_config": T5Config,
    "qformer_config": InstructBlipQFormerConfig,
}


def field_names(config: type[PreTrainedConfig]) -> set[str]:
    """All fields of a config class."""
    return {field.name for field in dataclasses.fields(config)}


def swiglu_width(width: int, multiple: int = 256) -> int:
    """Hidden width of the SwiGLU block: 2/3 of 4 x width, rounded up (LlamaGen's rule)."""
    return -(-int(8 * width / 3) // multiple) * multiple


class MentorConfig(PreTrainedConfig):
    """Every size of a MENTOR policy; the defaults are MENTOR's (decoder XL, CLIP-L/14, FlanT5-XL, VQ-16 at 512 px).

    Attributes:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: the decoder's D, depth, H, SwiGLU width.
        vocab_size: image codes, equal to the tokenizer's codebook size.
        context_length: most prefix slots a prompt may fill, and rows of the unconditional table.
        dropout: on token embeddings, attention output and SwiGLU output, in training only.
        placeholder_id: the text token that stands for one patch of a picture.
        connector: "mlp" gives a picture one prefix slot per patch, "query" as many as there are ``queries``.
        connector_width: hidden width of the MLP connector (code of MENTOR: the text width; its paper: 4096, SiLU).
    """

    model_type = "mentor"
    sub_configs_defaults = {  # noqa: RUF012
        "vq_config": VQConfig,
        "clip_config": SubConfigSpec(CLIPVisionConfig, optional=True),
        "t5_config": T5Config,
        "qformer_config": SubConfigSpec(InstructBlipQFormerConfig, optional=True),
    }

    vq_config: Any = None
    clip_config: Any = None
    t5_config: Any = None
    qformer_config: Any = None
    size: str = "XL"
    vocab_size: int = 16384
    hidden_size: int = 1280
    num_hidden_layers: int = 36
    num_attention_heads: int = 20
    intermediate_size: int = 3584
    context_length: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    dropout: float = 0.1
    placeholder_id: int = 32100
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    tie_word_embeddings: bool = False
    connector: str = "mlp"
    queries: int = 32
    connector_width: int | None = None
    connector_activation: str = "gelu"
    vision_tower: str = "clip"
    factorised_codebook: bool = False
    reference_positions: str = "prefix"
    image_positions: str = "input"
    prefix_rotation: str = "identity"
    uncond: str = "fixed"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UserError(f"MentorConfig.{name}: expected one of {', '.join(choices)}, found '{value}'")
        if self.vocab_size != self.vq_config.codebook_size:
            raise UserError(
                f"MentorConfig.vocab_size: expected the tokenizer's codebook size {self.vq_config.codebook_size}, "
                f"found {self.vocab_size}"
            )
        if self.connector == "mlp":
            self.qformer_config = None
        elif self.qformer_config is None:
            self.qformer_config = InstructBlipQFormerConfig()  # InstructBLIP's and MENTOR's: 12 layers of width 768
        if self.connector == "query" and self.reference_positions == "grid":
            raise UserError(
                "MentorConfig.reference_positions: expected 'prefix' with connector 'query', whose slots have no place "
                "in the picture; found 'grid'"
            )
        if self.num_attention_heads < 1 or self.hidden_size % (4 * self.num_attention_heads):
            raise UserError(
                "MentorConfig.hidden_size: expected a multiple of 4 x num_attention_heads = "
                f"{4 * self.num_attention_heads}, found {self.hidden_size}"
            )

    @property
    def text_width(self) -> int:
        """C: width of the encoder's output."""
        return int(self.t5_config.d_model)

    @property
    def grid(self) -> int:
        """Image cells along one side."""
        return int(self.vq_config.grid)

    @property
    def image_tokens(self) -> int:
        """L: tokens of an image."""
        return int(self.vq_config.tokens)

    @property
    def patch_grid(self) -> int:
        """Patches of a reference picture along one side."""
        if self.vision_tower == "tokenizer":
            return self.grid
        return int(self.clip_config.image_size // self.clip_config.patch_size)

    @property
    def picture_slots(self) -> int:
        """Prefix slots that one reference picture fills."""
        return self.queries if self.connector == "query" else self.patch_grid**2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def of_size(cls, name: str, **options: Any) -> MentorConfig:
        """A row of SIZES with some fields changed.

        ``options`` are fields of MentorConfig; fields of a part are given dotted (``{"t5_config.num_layers": 4}``) or
        as a mapping that is merged into the size's own. When ``hidden_size`` changes, ``intermediate_size`` follows.

        Raises:
            UserError: an unknown size or field, or a value of another type.
        """
        if name not in SIZES:
            raise UserError(f"policy.size: unknown size '{name}'; {nearest(name, SIZES)}")
        fields: dict[str, Any] = {"size": name, **SIZES[name]}
        known = field_names(cls)
        for key, value in options.items():
            part, _, leaf = key.partition(".")
            if part not in known:
                raise UserError(f"policy.options: unknown field '{key}'; {nearest(key, known)}")
            if leaf:
                value = {leaf: value}
            else:
                _check_type(key, value, getattr(cls, key, None))
            if part in PARTS and isinstance(value, dict):
                _check_part(part, value)
                value = {**fields.get(part, {}), **value}
            fields[part] = value
        if "hidden_size" in options and "intermediate_size" not in options:
            fields["intermediate_size"] = swiglu_width(fields["hidden_size"], 32 if name == "tiny" else 256)
        if fields.get("vision_tower", "clip") == "tokenizer":
            fields["clip_config"] = None
        if "vocab_size" not in options:
            tokenizer = fields["vq_config"]
            tokenizer = VQConfig(**tokenizer) if isinstance(tokenizer, dict) else tokenizer
            fields["vocab_size"] = tokenizer.codebook_size
        try:
            return cls(**fields)
        except StrictDataclassError as error:
            raise UserError(f"policy.options: {' '.join(str(error).split())}") from error


def _check_type(key: str, value: Any, default: Any) -> None:
    kind = (int, float) if isinstance(default, float) else type(default)
    if default is not None and not isinstance(value, kind):
        raise UserError(f"policy.options.{key}: expected {type(default).__name__}, found {value!r}")


def _check_part(part: str, values: dict[str, Any]) -> None:
    known = field_names(PARTS[part])
    for key in values:
        if key not in known and key != "model_type":
            raise UserError(f"policy.options: unknown field '{part}.{key}'; {nearest(key, known)}")


FLAN_T5_XL = {
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_heads": 32,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.1,
}
CLIP_L_14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}


def _decoder(layers: int, heads: int, width: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": swiglu_width(width),
        "vq_config": {"image_size": 512},
        "t5_config": FLAN_T5_XL,
        "clip_config": CLIP_L_14,
    }


TINY: dict[str, Any] = {
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "hidden_size": 192,
    "intermediate_size": swiglu_width(192, 32),
    "context_length": 160,
    "rope_theta": 100.0,
    "dropout": 0.0,
    "vision_tower": "tokenizer",
    "factorised_codebook": True,
    "reference_positions": "grid",
    "image_positions": "target",
    "uncond": "learned",
    "vq_config": {
        "image_size": 64,
        "codebook_size": 1024,
        "stem_patch": 4,
        "channels": 64,
        "multipliers": (1, 2),
        "latent_channels": 64,
        "normalisation": "none",
        "attention": False,
    },
    "t5_config": {
        "d_model": 160,
        "d_kv": 40,
        "d_ff": 320,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 2048,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    },
    "clip_config": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    },
    "qformer_config": {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 2048,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}

SIZES: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "B": _decoder(12, 12, 768),
    "L": _decoder(24, 16, 1024),
    "XL": _decoder(36, 20, 1280),
    "XXL": _decoder(48, 24, 1536),
    "XXXL": _decoder(48, 40, 2560),
    "1B": _decoder(22, 32, 2048),
    "3B": _decoder(24, 32, 3200),
    "7B": _decoder(32, 32, 4096),
}
