"""What plans know about a policy without its weights: parameters per part, the sharding unit, the tokenizer's FLOPs.

The model is built on the meta device, so a full-size policy costs a second and no memory; convolutions are counted by
running the tokenizer there. Transformer parts have formulas: compute.py, memory.py.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5ForConditionalGeneration

from mentor_base.config import MentorConfig
from mentor_base.lora import adapted_layers
from mentor_base.model import PARTS, MentorForConditionalGeneration
from mentor_base.settings import TrainedParts

if TYPE_CHECKING:
    from mentor_base.vq import VQModel

ENCODER_PARTS = ("vision", "connector", "text_encoder")  # in the order of the data flow


class Pass(NamedTuple):
    """What one call of the model works on; averages may be fractions.

    Attributes:
        prompts, slots: K prompts of T prefix slots.
        pictures: reference pictures of all prompts together.
        images: N drawn or target images.
        halves: 2 where guidance runs the decoder on conditional and unconditional rows.
    """

    prompts: float
    slots: float
    pictures: float
    images: float
    halves: int = 1


@dataclass(frozen=True)
class PolicyFacts:
    """Attributes:
    config: sizes of everything.
    parameters: per part of PARTS, without adapters.
    train: the freeze plan.
    largest_block: parameters of the largest block that ZeRO-3 and FSDP2 gather as one.
    outside_blocks: parameters in no block: tables, connector, tokenizer.
    adapters: parameters of the freeze plan's adapters per part; empty without LoRA.
    encode_flops, decode_flops, trunk_flops: the tokenizer's forward FLOPs per picture: pixels to codes, codes to
        pixels, pixels to the features that ``vision_tower: tokenizer`` reads.
    """

    config: MentorConfig
    parameters: dict[str, int]
    largest_block: int
    outside_blocks: int
    train: TrainedParts
    adapters: dict[str, int]
    encode_flops: int
    decode_flops: int
    trunk_flops: int

    @property
    def total(self) -> int:
        """With adapters."""
        return sum(self.parameters.values()) + sum(self.adapters.values())

    @property
    def trained_parts(self) -> dict[str, int]:
        """Trained parameters per part that trains: its weights, or its adapters."""
        counted = self.parameters if self.train.lora is None else self.adapters
        return {name: counted[name] for name in self.train.parts}

    @property
    def trained(self) -> int:
        return sum(self.trained_parts.values())

    @property
    def crossed(self) -> int:
        """Parameters of the parts that gradients reach."""
        return sum(self.parameters[part] for part in PARTS if gradient_reaches(self.train, part)) + sum(
            self.adapters.values()
        )


def facts_of(config: MentorConfig, train: TrainedParts) -> PolicyFacts:
    """Count a policy of these sizes; seconds, and no memory for weights.

    Raises:
        UserError: targets of adapters that no layer is called.
    """
    with torch.device("meta"):
        model = MentorForConditionalGeneration(config)
    modules = {name: model.get_submodule(place) for name, place in PARTS.items()}
    parameters = {name: _count(module) for name, module in modules.items()}
    blocks = [_count(module) for module in model.modules() if type(module).__name__ in model._no_split_modules]
    encode, decode, trunk = _tokenizer_flops(model.vq)
    return PolicyFacts(
        config=config,
        parameters=parameters,
        largest_block=max(blocks),
        outside_blocks=sum(parameters.values()) - sum(blocks),
        train=train,
        adapters=_adapters(model, modules, train),
        encode_flops=encode,
        decode_flops=decode,
        trunk_flops=trunk,
    )


def captioner_parameters(config: MentorConfig) -> int:
    """Of a T5 decoder of the text encoder's sizes, with its word table and an untied head."""
    with torch.device("meta"):
        t5 = T5ForConditionalGeneration(copy.deepcopy(config.t5_config))
    blocks = _count(t5.decoder.block) + _count(t5.decoder.final_layer_norm)
    return blocks + 2 * config.t5_config.vocab_size * config.t5_config.d_model


def gradient_reaches(train: TrainedParts, part: str) -> bool:
    """Whether the backward pass goes into a part: it is trained, or something before it is."""
    if part == "decoder":
        return bool(train.parts)  # it comes after all others
    if part == "vq":
        return False
    upstream = ENCODER_PARTS[: ENCODER_PARTS.index(part) + 1]
    return any(getattr(train, name) for name in upstream)


def _adapters(
    model: MentorForConditionalGeneration, modules: dict[str, torch.nn.Module], train: TrainedParts
) -> dict[str, int]:
    """Rank x (inputs + outputs) of each adapted layer."""
    if train.lora is None:
        return {}
    adapted = {id(model.get_submodule(name)) for name in adapted_layers(model, train)}
    return {
        part: sum(
            train.lora.rank * (layer.in_features + layer.out_features)
            for layer in modules[part].modules()
            if isinstance(layer, torch.nn.Linear) and id(layer) in adapted
        )
        for part in train.parts
    }


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _tokenizer_flops(vq: VQModel) -> tuple[int, int, int]:
    side = vq.config.image_size
    pixels = torch.empty(1, 3, side, side, device="meta")
    with torch.no_grad():
        with FlopCounterMode(display=False) as encoding:
            tokens = vq.encode(pixels)
        with FlopCounterMode(display=False) as decoding:
            vq.decode(tokens)
        with FlopCounterMode(display=False) as trunk:
            vq.trunk_features(pixels)
    return encoding.get_total_flops(), decoding.get_total_flops(), trunk.get_total_flops()
