"""Checkpoints of the published architectures with random weights, in the layouts that the rewards read.

Numbers are small and float16, as most of the published files are. Tokenizers have as many entries as the published
ones, all but the marks made up: what a prompt says does not change what it costs. Shapes of the two layouts that are
not transformers' come from tools/golden, where upstream's own code has confirmed them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parents[1] / "tools" / "golden"))  # at the end: no script may hide a package
import aesthetic as aesthetic_golden
import dino as dino_golden
import hps as hps_golden
import image_reward as image_reward_golden

CLIP_ENTRIES, BERT_ENTRIES = 49408, 30522
VIT_H = {"layers": 32, "width": 1280, "patch_size": 14, "image_size": 224}
TEXT_H = {"layers": 24, "width": 1024, "context_length": 77, "vocab_size": CLIP_ENTRIES}

Write = Callable[[Path], dict[str, Any]]  # writes into a folder, gives the reward's options


def hpsv2(folder: Path) -> dict[str, Any]:
    """open_clip's ViT-H/14 in one file."""
    shapes = hps_golden.shapes(VIT_H, TEXT_H, 1024)
    torch.save({"state_dict": _random(shapes)}, folder / "HPS_v2_compressed.pt")
    _clip_tokenizer(folder)
    return {"checkpoint": str(folder), "tokenizer": str(folder)}


def pickscore(folder: Path) -> dict[str, Any]:
    """transformers' CLIP ViT-H/14."""
    _clip(folder, (1280, 32, 16, 14), (1024, 24, 16), 1024, "gelu")
    return {"checkpoint": str(folder), "processor": str(folder)}


def image_reward(folder: Path) -> dict[str, Any]:
    """BLIP with ViT-L/16 and BERT-base, in ImageReward's file."""
    shapes = image_reward_golden.shapes(1024, 768, (24, 12), 512, BERT_ENTRIES + 2)
    torch.save(_random(shapes), folder / "ImageReward.pt")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*marks, *(f"word{n}" for n in range(BERT_ENTRIES - len(marks)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    facts = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return {"checkpoint": str(folder), "tokenizer": str(folder)}


def aesthetic(folder: Path) -> dict[str, Any]:
    """CLIP ViT-L/14 and the head of five layers."""
    _clip(folder, (1024, 24, 16, 14), (768, 12, 12), 768, "quick_gelu")
    torch.save(_random(aesthetic_golden.shapes()), folder / "head.pth")
    return {"checkpoint": str(folder), "head": str(folder / "head.pth")}


def clip_b32(folder: Path) -> dict[str, Any]:
    """CLIP ViT-B/32."""
    _clip(folder, (768, 12, 12, 32), (512, 12, 8), 512, "quick_gelu")
    return {"checkpoint": str(folder)}


def dino_s8(folder: Path) -> dict[str, Any]:
    """DINO ViT-S/8 in facebookresearch's layout."""
    return _dino(folder, 8)


def dino_s16(folder: Path) -> dict[str, Any]:
    """DINO ViT-S/16 in facebookresearch's layout."""
    return _dino(folder, 16)


def dinov2_s14(folder: Path) -> dict[str, Any]:
    """transformers' DINOv2 ViT-S/14."""
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14}
    _save(Dinov2Model, Dinov2Config(**sizes, image_size=518), folder)
    return {"checkpoint": str(folder)}


def installed(folder: Path) -> dict[str, Any]:
    """Nothing: the weights come with a package."""
    return {}


def _dino(folder: Path, patch: int) -> dict[str, Any]:
    torch.save(_random(dino_golden.shapes(224, patch, 384, 12)), folder / "dino.pth")
    return {"checkpoint": str(folder / "dino.pth")}


def _clip(
    folder: Path, vision: tuple[int, int, int, int], text: tuple[int, int, int], width: int, activation: str
) -> None:
    """A CLIPModel folder. ``vision``: width, layers, heads, patch; ``text``: width, layers, heads."""
    from mentor_rewards.clip_preprocessing import Preprocessing
    from transformers import CLIPConfig, CLIPModel

    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    pictures: dict[str, Any] = dict(zip((*sizes, "patch_size"), vision, strict=True))
    words: dict[str, Any] = dict(zip(sizes, text, strict=True))
    for tower in (pictures, words):
        tower |= {"intermediate_size": 4 * tower["hidden_size"], "hidden_act": activation}
    words |= {"vocab_size": CLIP_ENTRIES, "bos_token_id": CLIP_ENTRIES - 2, "eos_token_id": CLIP_ENTRIES - 1}
    _save(CLIPModel, CLIPConfig(text_config=words, vision_config=pictures, projection_dim=width), folder)
    Preprocessing().save(folder)
    _clip_tokenizer(folder)


def _save(model_class: Any, config: Any, folder: Path) -> None:
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in model_class(config).state_dict().items()}
    save_file(_random(shapes), folder / "model.safetensors", metadata={"format": "pt"})


def _random(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, dtype=torch.float16).uniform_(-0.03, 0.03) for name, shape in shapes.items()}


def _clip_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [*(f"word{n}" for n in range(CLIP_ENTRIES - 2)), "<start>", "<end>"]
    words = Tokenizer(models.WordLevel({name: row for row, name in enumerate(names)}, unk_token="word0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [(mark, names.index(mark)) for mark in ("<start>", "<end>")]
    words.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=marks)
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<end>", bos_token="<start>", eos_token="<end>"
    ).save_pretrained(folder)
