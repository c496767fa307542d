"""Small policies from scratch: text tokenizer, sizes that follow from the parts, and an initialisation that can copy.

Full sizes start from pretrained CLIP, T5, LlamaGen and VQ weights (checkpoint.py), not from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from mentor_base.config import MentorConfig
from mentor_base.data.schema import IMAGE_MARK
from mentor_base.decoder import Block
from mentor_base.errors import UserError
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.processor import MentorProcessor
from mentor_base.settings import PolicyModel
from mentor_base.vq import VQModel

TEXT_VOCABULARY = 2048
FROM_SCRATCH = ("tiny",)
DECIDED = (
    "size", "vocab_size", "placeholder_id", "pad_token_id", "eos_token_id", "t5_config.vocab_size",
    "qformer_config.vocab_size", "qformer_config.pad_token_id",
)  # fmt: skip


def build_policy(
    settings: PolicyModel, vq: VQModel, corpus: list[str]
) -> tuple[MentorForConditionalGeneration, MentorProcessor]:
    """A fresh policy around a trained tokenizer; torch's global seed decides its weights.

    Raises:
        UserError: a size that does not start from scratch, an unknown option, or one that the parts decide.
    """
    if settings.size not in FROM_SCRATCH:
        raise UserError(
            f"policy.size: expected one of {', '.join(FROM_SCRATCH)} to train from scratch, found '{settings.size}' "
            "(full sizes start from pretrained weights)"
        )
    for name in settings.options:
        if name.startswith("vq_config") or name in DECIDED:
            raise UserError(f"policy.options.{name}: expected no value, the tokenizers or another key decide it")
    text = text_tokenizer(corpus)
    options = {
        **settings.options,
        "vq_config": vq.config,
        "t5_config.vocab_size": len(text),
        "placeholder_id": text.convert_tokens_to_ids(IMAGE_MARK),
        "qformer_config.vocab_size": len(text),
        "qformer_config.pad_token_id": text.pad_token_id,
        "pad_token_id": text.pad_token_id,
        "eos_token_id": text.eos_token_id,
    }
    config = MentorConfig.of_size(settings.size, **options)
    model = MentorForConditionalGeneration(config)
    model.vq.load_state_dict(vq.state_dict())
    initialise(model)
    return model.eval(), MentorProcessor.of(config, text, guide_tokenizer=text)


def text_tokenizer(corpus: Iterable[str], vocabulary: int = TEXT_VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-level BPE, case folded, learned from ``corpus``: any text can be written, known words are short."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    mark = AddedToken(IMAGE_MARK, lstrip=True, normalized=False, special=True)
    tokenizer.add_special_tokens([mark])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", extra_special_tokens=[mark]
    )


@torch.no_grad()
def initialise(model: MentorForConditionalGeneration) -> None:
    """Weights for small widths. LlamaGen's N(0, 0.02) is meant for a thousand dimensions; at two hundred it lets the
    prefix arrive at a hundredth of unit scale, and copying is not learned.

    Projections on the way from a picture to the decoder keep unit variance; what is added to a residual stream is
    damped by its depth, so that the picture is still most of the stream at its end; the head starts at zero.
    """
    config, decoder = model.config, model.decoder
    into_decoder = [decoder.cap_proj.fc1, decoder.cap_proj.fc2]
    for layer in [*model.encoder.connector.modules(), *into_decoder]:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    depth = 1 / math.sqrt(2 * config.t5_config.num_layers)
    for block in model.encoder.text.encoder.block:
        block.layer[0].SelfAttention.o.weight.mul_(depth)
        block.layer[1].DenseReluDense.wo.weight.mul_(depth)
    for part in decoder.modules():
        if isinstance(part, Block):
            for last in (part.out, part.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * config.num_hidden_layers))
    nn.init.normal_(decoder.embedding.weight, std=0.3)
    nn.init.zeros_(decoder.head.weight)
    if config.factorised_codebook:
        nn.init.zeros_(decoder.embedding.weight)
        nn.init.normal_(decoder.codebook_in.weight, std=0.8)
        nn.init.normal_(decoder.codebook_out.weight, std=0.004)
