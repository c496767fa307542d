"""CLIP towers behind every CLIP-shaped reward: unit embeddings of pictures and texts in float32.

Two layouts of weights are read. A folder (or hub id) is what ``CLIPModel.save_pretrained`` writes, with the tokenizer's
files and a ``preprocessor_config.json``; a file is an open_clip checkpoint (clip_open_clip.py), for which the caller
names tokenizer and preprocessing. One copy per (weights, device, dtype) is in memory, shared by all rewards that use
it, also where they prepare their pictures in different ways.

Shapes: M pictures or texts, C embedding width, H rows, W columns, S text tokens.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image

from mentor_rewards.clip_open_clip import clip_config, clip_state
from mentor_rewards.clip_preprocessing import PixelsOf, Preprocessing
from mentor_rewards.contract import RewardError
from mentor_rewards.pretrained import load_model, load_state, model_folder, read_json, read_tensors, weights_of
from mentor_rewards.weights import TOKENIZER_FILES, checksum, find_folder

_LEGACY_EOS = 2  # OpenAI's configs say 2; transformers then pools at the largest token id
Activation = Literal["gelu", "quick_gelu"]


class ClipFiles(NamedTuple):
    """What a tower is read from: its files of weights, their folder, the tokenizer's folder, the preprocessing."""

    weights: list[Path]
    own: Path
    words: Path
    pixels: PixelsOf


def find_clip(
    source: str | Path, tokenizer: str | Path | None = None, preprocessing: PixelsOf | None = None
) -> ClipFiles:
    """The parts of a tower, there or fetched; arguments as in ``ClipTower.load``. Reads configs only.

    Raises:
        RewardError: a missing folder or file, or another model's.
    """
    path = Path(source).expanduser()
    own = path.parent if path.is_file() else model_folder(source, TOKENIZER_FILES)
    files = [path] if path.is_file() else _weights_of(own)
    words = own if tokenizer is None else find_folder(tokenizer, (*TOKENIZER_FILES, "config.json"))
    if not any((words / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise RewardError(f"{words}: expected a tokenizer, tokenizer.json or vocab.json, found neither")
    return ClipFiles(files, own, words, Preprocessing.load(own) if preprocessing is None else preprocessing)


class ClipTower:
    """A CLIPModel with a tokenizer and a preprocessing; get one with ``ClipTower.load``."""

    def __init__(
        self, files: Sequence[Path], model: Any, tokenizer: Any, tokenizer_folder: Path, preprocessing: PixelsOf
    ) -> None:
        self.files, self.model, self.tokenizer, self.preprocessing = tuple(files), model, tokenizer, preprocessing
        self.width: int = model.config.projection_dim
        self.text_length: int = model.config.text_config.max_position_embeddings
        self._tokenizer_folder = tokenizer_folder

    @staticmethod
    def load(
        source: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        tokenizer: str | Path | None = None,
        preprocessing: PixelsOf | None = None,
        activation: Activation = "gelu",
    ) -> ClipTower:
        """The shared tower of these weights; loads it when nobody holds it.

        Args:
            source: folder or hub id of a CLIPModel, or the path of an open_clip checkpoint.
            tokenizer: folder or hub id; None: the weights' own folder.
            preprocessing: hashable; None: what the weights' folder says.
            activation: of an open_clip checkpoint; a folder's config knows its own.

        Raises:
            RewardError: missing folder or file, tensors that do not fit, a tokenizer that does not fit the model.
        """
        path = Path(source).expanduser()
        files, own, words, pixels = find_clip(source, tokenizer, preprocessing)
        weights = (*(str(file.resolve()) for file in files), device, dtype, activation if path.is_file() else None)
        key = (*weights, str(words.resolve()), pixels)
        with _LOCK:
            tower = _TOWERS.get(key)
            if tower is None:
                model = _MODELS.get(weights)
                if model is None:
                    model = (_open_clip(path, dtype, activation) if path.is_file() else _folder(own, dtype)).to(device)
                    _MODELS[weights] = model
                _check_side(pixels, model, own)
                tower = ClipTower(files, model, _tokenizer(words, model, own), words, pixels)
                _TOWERS[key] = tower
            return tower

    @property
    def key(self) -> Hashable:
        """Tells this tower's embeddings from others' in ``RewardBatch.shared``."""
        paths = (*(str(file.resolve()) for file in self.files), str(self._tokenizer_folder.resolve()))
        return "clip", paths, str(self.model.device), str(self.model.dtype), self.preprocessing

    @cached_property
    def checksums(self) -> dict[str, str]:
        """File name -> sha256 of the weights."""
        return {path.name: checksum(path) for path in self.files}

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


_MODELS: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
_TOWERS: weakref.WeakValueDictionary[Hashable, ClipTower] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def _weights_of(folder: Path) -> list[Path]:
    if not (folder / "config.json").is_file():
        raise RewardError(f"{folder}: expected a CLIPModel folder, found no config.json")
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise RewardError(f"{folder}: expected model_type 'clip', found {kind!r}")
    return weights_of(folder)


def _folder(folder: Path, dtype: str) -> Any:
    from transformers import CLIPModel

    return load_model(CLIPModel, folder, dtype)


def _open_clip(path: Path, dtype: str, activation: Activation) -> Any:
    from transformers import CLIPModel

    state = read_tensors(path)
    return load_state(CLIPModel, clip_config(state, activation, str(path)), clip_state(state), dtype, str(path))


def _check_side(pixels: PixelsOf, model: Any, where: Path) -> None:
    side = model.config.vision_config.image_size
    if pixels.side != side:
        raise RewardError(f"{where}: the tower looks at {side} pixels a side, the preprocessing makes {pixels.side}")


def _tokenizer(folder: Path, model: Any, where: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    eos = model.config.text_config.eos_token_id
    if eos != _LEGACY_EOS and eos != tokenizer.eos_token_id:
        raise RewardError(
            f"{where}: the model pools at token {eos} (text_config.eos_token_id), "
            f"the tokenizer ends texts with {tokenizer.eos_token_id}"
        )
    return tokenizer


def _unit(features: torch.Tensor) -> torch.Tensor:
    """L2-normalised in float32: a half-precision cosine is quantised to 2e-4."""
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()
