"""``backend: upstream`` of the CLIP rewards: the package open_clip, with its own model, preprocessing and tokenizer.

For weights that only open_clip reads, and to hold our towers against it. Nothing is shared with other rewards. Extra
``open-clip``; it needs a torchvision that fits torch.

Shapes: M pictures or texts, C embedding width.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from PIL import Image

from mentor_rewards.contract import RewardError
from mentor_rewards.pixels import rgb
from mentor_rewards.pretrained import upstream_module
from mentor_rewards.weights import checksum

CONFIG = "open_clip_config.json"


class OpenClipTower:
    """What ClipTower is, by open_clip.

    Args:
        source: a folder with open_clip_config.json and its weights, or a hub id of one.
        device, dtype: where and in what it runs.

    Raises:
        RewardError: the package cannot be imported, or the folder is none of its own.
    """

    def __init__(self, source: str | Path, device: str, dtype: str) -> None:
        open_clip = upstream_module("open_clip", "open-clip")
        folder = Path(source).expanduser()
        if folder.exists() and not (folder / CONFIG).is_file():
            raise RewardError(f"{folder}: expected a folder of open_clip, found no {CONFIG}")
        name = f"local-dir:{folder.resolve()}" if folder.exists() else f"hf-hub:{source}"
        precision = {"float32": "fp32", "bfloat16": "pure_bf16", "float16": "pure_fp16"}[dtype]
        self.model, self._prepare = open_clip.create_model_from_pretrained(name, device=device, precision=precision)
        self.model.eval()
        self.width: int = self.model.visual.output_dim
        self._tokenizer = open_clip.get_tokenizer(name)
        self._device, self._dtype = device, getattr(torch, dtype)
        self.key: Hashable = "open_clip", name, device, dtype
        files = sorted(folder.glob("open_clip_*.safetensors")) + sorted(folder.glob("open_clip_*.bin"))
        self.checksums = {path.name: checksum(path) for path in files}

    @torch.inference_mode()
    def image_embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors [M, C], float32 on the CPU."""
        pixels = torch.stack([self._prepare(rgb(image)) for image in images]).to(self._device, self._dtype)
        return torch.nn.functional.normalize(self.model.encode_image(pixels).float(), dim=-1).cpu()

    @torch.inference_mode()
    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [M, C], float32 on the CPU; open_clip cuts texts that are longer than the model."""
        tokens = self._tokenizer(list(texts)).to(self._device)
        return torch.nn.functional.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu()

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Which texts lose tokens; start and end mark count."""
        limit: int = self._tokenizer.context_length
        return [len(self._tokenizer.encode(text)) + 2 > limit for text in texts]
