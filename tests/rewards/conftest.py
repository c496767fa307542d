"""Tiny scorer folders with random weights, and batches of drawn pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

WORDS = ["a", "disc", "red", "blue", "yellow", "white", "black", "green"]
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel of two layers with a word tokenizer, as a scorer recipe writes it."""
    from mentor_rewards.clip_preprocessing import Preprocessing
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    specials = ["<pad>", "<unk>", "<start>", "<end>"]
    vocabulary = {word: row for row, word in enumerate([*specials, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), specials, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    text = {"vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 8, "eos_token_id": 3, "bos_token_id": 2}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    Preprocessing(short=32, crop=32).save(folder)
    return folder


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ConvClassifier of three labels."""
    from mentor_rewards.classifier import ClassifierConfig, ConvClassifier

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    ConvClassifier(ClassifierConfig(labels=("noto", "blob", "fox"), width=8, image_size=32)).save(folder)
    return folder
