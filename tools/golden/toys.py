"""What the golden scripts and their tests share: pictures, weights and words, all computed.

Weights are a function of tensor name and shape, so that no file is needed on either side.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZES = ((256, 256), (224, 224), (299, 227), (97, 331), (224, 101))  # widths and heights in pixels
WORDS = ["a", "an", "the", "red", "blue", "green", "disc", "square", "fox"]
WORDS += ["on", "of", "with", "very", "and", "left", "right", "top"]
VOCABULARY = ["<pad>", "<unk>", *WORDS, "<start>", "<end>"]  # the end mark is the last token, as in CLIP
PROMPTS = ("a red disc", "the blue fox on a green square", "a very red disc and the blue fox " * 3, "unknown", "a fox")


def picture(size: tuple[int, int]) -> Image.Image:
    """A drawn RGB picture: a gradient with sharp edges on it."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    ground = np.stack([columns * 255 // width, rows * 255 // height, (rows + columns) % 256], axis=-1)
    image = Image.fromarray(ground.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 5, height // 4, width // 2, height // 2), fill="red")
    draw.rectangle((width // 2, height // 2, width - 5, height - 9), fill="blue", outline="white")
    return image


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform values in [-1, 1), float64; numpy promises that PCG64's raw stream stays as it is."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((np.asarray(raw, np.uint64) >> np.uint64(11)) * 2.0**-53 * 2 - 1).reshape(shape)


def tensor(name: str, shape: Iterable[int]) -> np.ndarray:
    """Float32 values in the scale of a trained network."""
    sizes = tuple(shape)
    uniform = noise(name, sizes)
    if len(sizes) < 2:
        is_gain = name.endswith("weight") and ("norm" in name or ".ln_" in f".{name}")
        return np.asarray(0.2 * uniform + is_gain, np.float32)
    fan_in = 1 if "embed" in name and "patch" not in name else int(np.prod(sizes[1:]))
    return np.asarray(uniform * np.sqrt(3 / fan_in), np.float32)


def state(shapes: Mapping[str, Iterable[int]]) -> dict[str, Any]:
    """These tensors by name, as torch's."""
    import torch

    return {name: torch.from_numpy(tensor(name, shape)) for name, shape in shapes.items()}


def token_ids(prompt: str, length: int) -> list[int]:
    """As CLIP's tokenizers: marks at both ends, cut before the end mark, padded with zeros."""
    words = [VOCABULARY.index(word) if word in VOCABULARY else 1 for word in prompt.split()]
    ids = [len(VOCABULARY) - 2, *words[: length - 2], len(VOCABULARY) - 1]
    return ids + [0] * (length - len(ids))


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of these words for transformers; makes the same ids as ``token_ids``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: row for row, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [(mark, VOCABULARY.index(mark)) for mark in ("<start>", "<end>")]
    words.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=marks)
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    ).save_pretrained(folder)


def probes(pixels_3HW: Any) -> list[float]:
    """A few pixels and two sums that tell one preprocessing from another."""
    side = pixels_3HW.shape[-1]
    places = [(0, 0, 0), (1, side // 2, side // 4), (2, side - 1, side - 1), (0, side // 7, side - 3), (1, side - 2, 5)]
    return [float(pixels_3HW[place]) for place in places] + [
        float(pixels_3HW.mean()),
        float(abs(pixels_3HW[..., 1:] - pixels_3HW[..., :-1]).mean()),
    ]


def declare_torchvision_operators() -> Any:
    """Beside a CPU build of torch, PyPI's torchvision fails on import for want of two operators; keep what returns."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
