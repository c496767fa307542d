"""Captions and the tokenizer of the emoji world's small CLIP, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mentor_rewards.clip_preprocessing import Preprocessing
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, PreTrainedTokenizerFast

from mentor_base.data.captions import an, emoji_caption, subject_text
from mentor_base.data.schema import IMAGE_MARK
from mentor_base.data.shapes import COLOURS, background_words

TEXT_LENGTH = 40
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
HALF = (0.5, 0.5, 0.5)
PREPROCESSING = Preprocessing(short=64, crop=64, mean=HALF, std=HALF)
_COLOUR_NAMES = tuple(COLOURS)

Facts = tuple[int, int, int]  # subject, style, ground: indices


@dataclass(frozen=True)
class Caption:
    """A caption, and the facts that it claims (None: it says nothing about that)."""

    text: str
    subject: int
    style: int | None
    ground: int | None

    def fits(self, subject: int, style: int, ground: int) -> bool:
        """Whether it is true of a picture with these facts."""
        return self.subject == subject and self.style in (None, style) and self.ground in (None, ground)


def draw_caption(rng: Random, facts: Facts, name: str, style: str, keywords: tuple[str, ...]) -> Caption:
    """Mostly what prompts say, sometimes less. No word on the ground means white, as in prompts."""
    subject, style_index, ground = facts
    colour = _COLOUR_NAMES[ground]
    roll = rng.random()
    if roll < 0.5:
        text = subject_text(rng, name, style, colour).replace(IMAGE_MARK, " ")
        return Caption(" ".join(text.split()), subject, style_index, ground)
    if roll < 0.85:
        return Caption(emoji_caption(rng, name, style, colour, keywords), subject, style_index, ground)
    return Caption(f"{an(name)}{background_words(colour)}", subject, None, ground)


def caption_tokenizer(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE, lower case, ``<bos> ... <eos>``; every text can be written, unknown words in pieces."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    ends = [(mark, core.token_to_id(mark)) for mark in ("<bos>", "<eos>")]
    core.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=TEXT_LENGTH,
        padding_side="right",
    )


def clip_config(tokenizer: PreTrainedTokenizerFast) -> CLIPConfig:
    """64 px pictures in patches of 8; four vision layers, two text layers."""
    return CLIPConfig(
        projection_dim=96,
        logit_scale_init_value=2.3,
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "hidden_act": "gelu",
        },
        vision_config={
            "image_size": 64,
            "patch_size": 8,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "hidden_act": "gelu",
        },
    )
