"""A small convolutional classifier of pictures: style, subject, or whatever its labels say.

Residual blocks, global pooling, an embedding layer, a linear head. With group and with batch norm a picture's score
does not depend on its neighbours: scoring is in evaluation mode, where batch norm has fixed statistics.
On disk: ``config.json`` (labels and sizes) and ``model.safetensors``.

Shapes: M pictures, H rows, W columns, E embedding width, P labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mentor_rewards.contract import RewardError, nearest
from mentor_rewards.pixels import squares
from mentor_rewards.pretrained import read_json

NORMALISATIONS = ("group", "batch")
_GROUP_CHANNELS = 8


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of a ConvClassifier.

    Attributes:
        labels: class names in the order of the head's rows.
        width: channels of the first stage; stages have width x multipliers channels, each half the resolution.
        multipliers: one per stage.
        blocks: residual blocks per stage.
        embedding: width E of the embedding.
        image_size: side in pixels; other pictures are resized (Lanczos).
        normalisation: "group" or "batch"; batch norm learned the emoji styles in fewer pictures.
    """

    labels: tuple[str, ...]
    width: int = 40
    multipliers: tuple[int, ...] = (1, 2, 3)
    blocks: int = 1
    embedding: int = 128
    image_size: int = 64
    normalisation: str = "group"

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise RewardError(f"classifier: expected distinct labels, found {len(self.labels)} of which some are equal")
        if self.normalisation not in NORMALISATIONS:
            known = nearest(str(self.normalisation), NORMALISATIONS)
            raise RewardError(f"classifier: unknown normalisation '{self.normalisation}'; {known}")
        if self.width % _GROUP_CHANNELS:
            raise RewardError(f"classifier: width has to be a multiple of {_GROUP_CHANNELS}, found {self.width}")


class ConvClassifier(nn.Module):
    """Pictures -> logits over labels."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.index = {label: row for row, label in enumerate(config.labels)}
        channels = [config.width * multiplier for multiplier in config.multipliers]
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 5, stride=2, padding=2)]
        before = channels[0]
        for stage, width in enumerate(channels):
            for block in range(config.blocks):
                layers.append(_Residual(before, width, 2 if stage and not block else 1, config.normalisation))
                before = width
        self.trunk = nn.Sequential(*layers, _norm(before, config.normalisation), nn.SiLU())
        self.project = nn.Linear(2 * before, config.embedding)
        self.head = nn.Linear(config.embedding, len(config.labels))

    def embed(self, pixels_M3HW: torch.Tensor) -> torch.Tensor:
        """Embeddings [M, E] of pixels in [-1, 1]: mean and maximum over the last map, projected."""
        features = self.trunk(pixels_M3HW)
        return self.project(torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1))

    def forward(self, pixels_M3HW: torch.Tensor) -> torch.Tensor:
        """Logits [M, P] of pixels in [-1, 1]."""
        return self.head(nn.functional.silu(self.embed(pixels_M3HW)))

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """PIL pictures -> pixels_M3HW in [-1, 1] on the model's device; alpha goes over white."""
        pixels = torch.from_numpy(squares(images, self.config.image_size)).permute(0, 3, 1, 2)
        weight = self.head.weight
        return (pixels * 2 - 1).to(weight.device, weight.dtype)

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Probabilities [M, P], float32 on the CPU."""
        return self(self.pixels(images)).float().softmax(dim=-1).cpu()

    @torch.inference_mode()
    def embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit embeddings [M, E], float32 on the CPU."""
        return nn.functional.normalize(self.embed(self.pixels(images)).float(), dim=-1).cpu()

    def save(self, folder: str | Path, dtype: str = "float32") -> None:
        """Write config.json and model.safetensors, the weights in ``dtype``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"kind": "classifier", **asdict(self.config)}, indent=1) + "\n")
        to = getattr(torch, dtype)
        tensors = {
            name: (t.to(to) if t.is_floating_point() else t).detach().cpu().contiguous()
            for name, t in self.state_dict().items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    @staticmethod
    def load(folder: str | Path, device: str = "cpu", dtype: str = "float32") -> ConvClassifier:
        """Read a folder, strictly; in evaluation mode, without gradients.

        Raises:
            RewardError: missing folder or file, unknown keys, tensors that are missing, too many or misshapen.
        """
        folder = Path(folder)
        model = ConvClassifier(_read_config(folder / "config.json"))
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise RewardError(f"{weights}: no such file")
        try:
            tensors = load_file(weights)
        except SafetensorError as error:
            raise RewardError(f"{weights}: expected a whole safetensors file, found a damaged one: {error}") from error
        _load_strictly(model, tensors, weights)
        return model.to(device, getattr(torch, dtype)).eval().requires_grad_(False)


class _Residual(nn.Module):
    """Pre-activation block: norm, SiLU, 3x3, twice; 1x1 on the skip where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, normalisation: str) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(before, normalisation), nn.SiLU(), nn.Conv2d(before, after, 3, stride, 1))
        self.second = nn.Sequential(_norm(after, normalisation), nn.SiLU(), nn.Conv2d(after, after, 3, 1, 1))
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.skip(features) + self.second(self.first(features))


def _norm(channels: int, kind: str) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(channels // _GROUP_CHANNELS, channels)


def _read_config(path: Path) -> ClassifierConfig:
    facts = read_json(path)
    if facts.pop("kind", None) != "classifier":
        raise RewardError(f"{path}: expected kind 'classifier'")
    known = [field.name for field in fields(ClassifierConfig)]
    for key in facts:
        if key not in known:
            raise RewardError(f"{path}: unknown key '{key}'; {nearest(key, known)}")
    for key in known:
        if key not in facts:
            raise RewardError(f"{path}: missing key '{key}'")
    options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in facts.items()}
    return ClassifierConfig(**options)


def _load_strictly(model: nn.Module, tensors: dict[str, torch.Tensor], where: Path) -> None:
    own = model.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors:
            raise RewardError(f"{where}: missing tensor '{name}'")
        if name not in own:
            raise RewardError(f"{where}: unexpected tensor '{name}'; {nearest(name, own)}")
        if own[name].shape != tensors[name].shape:
            expected, found = list(own[name].shape), list(tensors[name].shape)
            raise RewardError(f"{where}: tensor '{name}': expected shape {expected}, found {found}")
    model.load_state_dict(tensors)
