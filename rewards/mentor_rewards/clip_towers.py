"""CLIP towers behind every CLIP-shaped reward: unit embeddings of pictures and texts in float32.

A folder is what ``CLIPModel.save_pretrained`` writes, with the tokenizer's files and a ``preprocessor_config.json`` in
the usual keys (Preprocessing reads and writes it). Pictures are prepared with PIL and numpy: no torchvision.
One copy per (folder, device, dtype) is in memory, shared by all rewards that use it.

Shapes: M pictures or texts, C embedding width, H rows, W columns, S text tokens.
"""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from mentor_rewards.contract import RewardError
from mentor_rewards.pixels import short_side_crop

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's pixel statistics
STD = (0.26862954, 0.26130258, 0.27577711)
_FILE = "preprocessor_config.json"
_LEGACY_EOS = 2  # OpenAI's configs say 2; transformers then pools at the largest token id


@dataclass(frozen=True)
class Preprocessing:
    """Short side to ``short``, central square of ``crop``, per-channel (x - mean) / std on [0, 1]."""

    short: int = 224
    crop: int = 224
    resample: int = int(Image.Resampling.BICUBIC)
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @classmethod
    def load(cls, folder: Path) -> Preprocessing:
        """From ``preprocessor_config.json``, old or new spelling of the sizes."""
        path = folder / _FILE
        facts = _read_json(path)
        try:
            size, crop = facts["size"], facts["crop_size"]
            return cls(
                short=size if isinstance(size, int) else size["shortest_edge"],
                crop=crop if isinstance(crop, int) else crop["height"],
                resample=facts.get("resample", int(Image.Resampling.BICUBIC)),
                mean=tuple(facts["image_mean"]),
                std=tuple(facts["image_std"]),
            )
        except (KeyError, TypeError) as error:
            raise RewardError(f"{path}: expected CLIP preprocessing, could not find {error}") from error

    def save(self, folder: Path) -> None:
        """Write it so that ``load``, and transformers' CLIP image processors, read the same."""
        facts = {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.short},
            "resample": self.resample,
            "do_center_crop": True,
            "crop_size": {"height": self.crop, "width": self.crop},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }
        (folder / _FILE).write_text(json.dumps(facts, indent=2) + "\n")

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Float32 pixels_M3HW."""
        pixels = np.empty((len(images), self.crop, self.crop, 3), dtype=np.float32)
        for m, image in enumerate(images):
            square = short_side_crop(image, self.short, self.crop, Image.Resampling(self.resample))
            pixels[m] = np.asarray(square)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return torch.from_numpy((pixels / np.float32(255) - mean) / std).permute(0, 3, 1, 2).contiguous()


class ClipTower:
    """A loaded CLIPModel with its tokenizer and preprocessing; get one with ``ClipTower.load``."""

    def __init__(self, folder: Path, model: Any, tokenizer: Any, preprocessing: Preprocessing) -> None:
        self.folder, self.model, self.tokenizer, self.preprocessing = folder, model, tokenizer, preprocessing
        self.text_length: int = model.config.text_config.max_position_embeddings

    @staticmethod
    def load(folder: str | Path, device: str = "cpu", dtype: str = "float32") -> ClipTower:
        """The shared tower of a folder; loads it when nobody holds it.

        Raises:
            RewardError: missing folder or file, tensors that do not fit, a tokenizer that does not fit the model.
        """
        folder = Path(folder).resolve()
        with _LOCK:
            key = (str(folder), device, dtype)
            tower = _LOADED.get(key)
            if tower is None:
                tower = _load(folder, device, dtype)
                _LOADED[key] = tower
            return tower

    @property
    def key(self) -> Hashable:
        """Tells this tower's embeddings from others' in ``RewardBatch.shared``."""
        return "clip", str(self.folder), str(self.model.device), str(self.model.dtype)

    @cached_property
    def checksums(self) -> dict[str, str]:
        """File name -> sha256 of the weights."""
        return {path.name: sha256(path) for path in sorted(self.folder.glob("*.safetensors"))}

    @torch.inference_mode()
    def image_embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors [M, C], float32 on the CPU."""
        pixels = self.preprocessing(images).to(self.model.device, self.model.dtype)
        return _unit(self.model.get_image_features(pixel_values=pixels).pooler_output)

    @torch.inference_mode()
    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [M, C], float32 on the CPU; texts longer than the model are cut, see ``too_long``."""
        inputs = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.text_length, return_tensors="pt"
        )
        tokens_MS, mask_MS = (inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        return _unit(self.model.get_text_features(input_ids=tokens_MS, attention_mask=mask_MS).pooler_output)

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Which texts lose tokens."""
        return [len(self.tokenizer(text, truncation=False)["input_ids"]) > self.text_length for text in texts]


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_LOADED: weakref.WeakValueDictionary[tuple[str, str, str], ClipTower] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def _load(folder: Path, device: str, dtype: str) -> ClipTower:
    from transformers import AutoTokenizer, CLIPModel

    if not (folder / "config.json").is_file():
        raise RewardError(f"{folder}: expected a CLIPModel folder, found no config.json")
    kind = _read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise RewardError(f"{folder}: expected model_type 'clip', found {kind!r}")
    try:
        model, report = CLIPModel.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except SafetensorError as error:
        raise RewardError(f"{folder}: expected whole safetensors files, found a damaged one: {error}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(problem):
            raise RewardError(
                f"{folder}: {problem.replace('_', ' ')}: {', '.join(map(str, sorted(report[problem])[:3]))}"
            )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    eos = model.config.text_config.eos_token_id
    if eos != _LEGACY_EOS and eos != tokenizer.eos_token_id:
        raise RewardError(
            f"{folder}: the model pools at token {eos} (text_config.eos_token_id), "
            f"the tokenizer ends texts with {tokenizer.eos_token_id}"
        )
    return ClipTower(folder, model.to(device).eval().requires_grad_(False), tokenizer, Preprocessing.load(folder))


def _unit(features: torch.Tensor) -> torch.Tensor:
    """L2-normalised in float32: a half-precision cosine is quantised to 2e-4."""
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        raise RewardError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise RewardError(f"{path}: not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise RewardError(f"{path}: expected an object, found {type(facts).__name__}")
    return facts
