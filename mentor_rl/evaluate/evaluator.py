"""EmojiBench's judge: concept preservation (CP) and prompt following (PF) of a picture, each in [0, 1].

It is trained apart from every reward: another seed, another architecture (depthwise blocks here, plain convolutions
and CLIP there), other crops. Heads: style, colour of the ground, and a subject embedding that is pulled
together across styles (supervised contrastive; Khosla et al., arXiv 2004.11362).

Meaning, after DreamBench++ (which asks a VLM for both; this judge is not comparable with it):
    CP  calibrated cosine of the subject embeddings of picture and reference: 0 at the mean of unrelated subjects, 1 at
        the mean of the same subject truly drawn in two styles, or above. Style and ground do not count.
    PF  geometric mean of the calibrated probabilities of the asked style and of the asked ground colour. Geometric: a
        picture that ignores one of the two instructions does not follow the prompt, whatever the other one says. An
        instruction that the prompt does not give is left out of the mean.

Shapes: N pictures, S styles, C colours, E embedding width, H rows, W columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError, nearest
from mentor_base.images import to_pixels

KIND = "emoji_evaluator"


class EvaluatorOutput(NamedTuple):
    """Raw heads of N pictures."""

    style_NS: torch.Tensor
    colour_NC: torch.Tensor
    embedding_NE: torch.Tensor


class DepthwiseBlock(nn.Module):
    """x + gain W2 relu(W1 norm(depthwise(x))), channels last: [N, H, W, width] -> same.

    Batch norm: at this size it learned styles in fewer pictures than group or layer norms (44 % against 36 % on unseen
    subjects after 14,000 pictures); its running statistics are fixed when judging, so neighbours do not matter.
    """

    def __init__(self, width: int, kernel: int = 5, expansion: int = 3) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.grow = nn.Linear(width, expansion * width)
        self.shrink = nn.Linear(expansion * width, width)
        self.gain = nn.Parameter(torch.full((width,), 0.2))

    def forward(self, x_NHWC: torch.Tensor) -> torch.Tensor:
        mixed = self.norm(self.mix(x_NHWC.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x_NHWC + self.gain * self.shrink(F.relu(self.grow(mixed)))


class EvaluatorNet(nn.Module):
    """64 px pictures in [-1, 1] -> style logits, ground colour logits and a unit subject embedding."""

    def __init__(
        self, *, styles: int, colours: int, width: int = 64, depth: tuple[int, int] = (2, 4), embedding: int = 96
    ):
        super().__init__()
        self.stem = nn.Conv2d(12, width // 2, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(width // 2)
        self.down = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.early = nn.ModuleList(DepthwiseBlock(width) for _ in range(depth[0]))
        self.widen = nn.Linear(4 * width, 2 * width)
        self.late = nn.ModuleList(DepthwiseBlock(2 * width) for _ in range(depth[1]))
        self.norm = nn.BatchNorm1d(4 * width)
        self.texture_norm = nn.BatchNorm1d(2 * width)
        self.style = nn.Sequential(nn.Linear(6 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, styles))
        self.colour = nn.Linear(4 * width, colours)
        self.subject = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, embedding))

    def forward(self, pixels_N3HW: torch.Tensor) -> EvaluatorOutput:
        x = (
            self.down(F.relu(self.stem_norm(self.stem(F.pixel_unshuffle(pixels_N3HW, 2)))))
            .permute(0, 2, 3, 1)
            .contiguous()
        )
        for block in self.early:
            x = block(x)
        texture_NW = torch.cat([x.mean(dim=(1, 2)), x.std(dim=(1, 2))], dim=1)
        n, height, width, channels = x.shape
        x = x.view(n, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        x = self.widen(x.reshape(n, height // 2, width // 2, 4 * channels))
        for block in self.late:
            x = block(x)
        pooled = self.norm(torch.cat([x.mean(dim=(1, 2)), x.amax(dim=(1, 2))], dim=1))
        return EvaluatorOutput(
            style_NS=self.style(torch.cat([pooled, self.texture_norm(texture_NW)], dim=1)),
            colour_NC=self.colour(pooled),
            embedding_NE=F.normalize(self.subject(pooled), dim=1),
        )


@dataclass(frozen=True)
class Calibration:
    """Measured on the val split, and stored with the checkpoint.

    Attributes:
        unrelated: mean cosine of two different subjects.
        same: mean cosine of one subject truly drawn in two styles.
        style_temperature, colour_temperature: the logits are divided by these (Guo et al., arXiv 1706.04599).
    """

    unrelated: float = 0.0
    same: float = 1.0
    style_temperature: float = 1.0
    colour_temperature: float = 1.0

    def concept(self, cosine_N: np.ndarray) -> np.ndarray:
        """Cosines -> CP in [0, 1].

        Raises:
            UserError: for an evaluator that does not tell subjects apart.
        """
        if self.same <= self.unrelated:
            raise UserError(
                f"evaluator: expected one subject in two styles to be nearer than two subjects, found cosines "
                f"{self.same:.3f} and {self.unrelated:.3f}; train it longer"
            )
        return np.clip((cosine_N - self.unrelated) / (self.same - self.unrelated), 0.0, 1.0)


class Reading(NamedTuple):
    """What the evaluator sees in N pictures: calibrated probabilities and unit embeddings."""

    style_NS: np.ndarray
    colour_NC: np.ndarray
    embedding_NE: np.ndarray


class Scores(NamedTuple):
    """Scores of N pictures in [0, 1]; NaN where the prompt asks for no style / no ground."""

    cp_N: np.ndarray
    pf_N: np.ndarray
    style_N: np.ndarray
    ground_N: np.ndarray


class Evaluator:
    """A trained evaluator: ``Evaluator.load(folder).score(images, prompts)``."""

    def __init__(
        self,
        net: EvaluatorNet,
        styles: Sequence[str],
        colours: Sequence[str],
        calibration: Calibration = Calibration(),
        size: Mapping[str, Any] | None = None,
        name: str = "evaluator",
    ) -> None:
        self.net, self.styles, self.colours = net.eval(), tuple(styles), tuple(colours)
        self.calibration, self.size, self.name = calibration, dict(size or {}), name

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image], batch: int = 128) -> Reading:
        """Look at pictures of any size (mean over each picture and its mirror image)."""
        parts = []
        device = next(self.net.parameters()).device
        for start in range(0, len(images), batch):
            pixels = to_pixels(images[start : start + batch], size=64).to(device)
            parts.append(self.read_pixels(pixels))
        return Reading(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    @torch.no_grad()
    def read_pixels(self, pixels_N3HW: torch.Tensor) -> Reading:
        """The same for 64 px tensors in [-1, 1]."""
        here, mirrored = self.net(pixels_N3HW), self.net(pixels_N3HW.flip(-1))
        mean = [(a + b) / 2 for a, b in zip(here, mirrored, strict=True)]
        return Reading(
            style_NS=(mean[0] / self.calibration.style_temperature).softmax(dim=1).cpu().numpy(),
            colour_NC=(mean[1] / self.calibration.colour_temperature).softmax(dim=1).cpu().numpy(),
            embedding_NE=F.normalize(mean[2], dim=1).cpu().numpy(),
        )

    def concept(self, images: Sequence[Image.Image], references: Sequence[Image.Image]) -> np.ndarray:
        """CP of each picture and its reference, [N] in [0, 1]."""
        cosine_N = (self.read(images).embedding_NE * self.read(references).embedding_NE).sum(axis=1)
        return self.calibration.concept(cosine_N)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Scores:
        """CP against each prompt's first picture, and PF against its ``meta["style"]`` and ``meta["background"]``."""
        for prompt in prompts:
            if not prompt.images:
                raise UserError(f"{prompt.meta.get('where', prompt.text)}: expected a reference picture, found none")
        seen = self.read(images)
        reference = self.read([prompt.images[0] for prompt in prompts])
        style_N = self._probabilities(seen.style_NS, self.styles, [p.meta.get("style") for p in prompts], "style")
        ground_N = self._probabilities(
            seen.colour_NC, self.colours, [p.meta.get("background") for p in prompts], "background"
        )
        cosine_N = (seen.embedding_NE * reference.embedding_NE).sum(axis=1)
        return Scores(self.calibration.concept(cosine_N), following(style_N, ground_N), style_N, ground_N)

    def _probabilities(
        self, table_NX: np.ndarray, names: Sequence[str], asked: Sequence[str | None], what: str
    ) -> np.ndarray:
        out = np.full(len(asked), np.nan)
        for i, name in enumerate(asked):
            if name is None:
                continue
            if name not in names:
                raise UserError(
                    f"{self.name}: asked for {what} '{name}', which it does not know; {nearest(name, names)}"
                )
            out[i] = table_NX[i, names.index(name)]
        return out

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """config.json and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            key: (value.to(dtype) if value.is_floating_point() else value).contiguous()
            for key, value in self.net.state_dict().items()
        }
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        config = {
            "kind": KIND,
            "styles": self.styles,
            "colours": self.colours,
            "size": self.size,
            "calibration": asdict(self.calibration),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Evaluator:
        """A saved evaluator (a folder, or a run folder with ``final/``), in float32."""
        path = Path(folder)
        path = path / "final" if (path / "final" / "config.json").exists() else path
        for name in ("config.json", "model.safetensors"):
            if not (path / name).exists():
                raise UserError(f"{path}: expected an evaluator (config.json and model.safetensors), found no {name}")
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if config.get("kind") != KIND:
            raise UserError(f"{path / 'config.json'}: expected kind '{KIND}', found {config.get('kind')!r}")
        size: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in config["size"].items()
        }
        net = EvaluatorNet(styles=len(config["styles"]), colours=len(config["colours"]), **size)
        try:
            loaded = load_file(str(path / "model.safetensors"))
        except SafetensorError as error:
            where = path / "model.safetensors"
            raise UserError(f"{where}: expected a whole safetensors file, found a damaged one: {error}") from error
        tensors = {key: value.float() if value.is_floating_point() else value for key, value in loaded.items()}
        wrong = _misfits(net.state_dict(), tensors)
        if wrong:
            raise UserError(f"{path / 'model.safetensors'}: {wrong}")
        net.load_state_dict(tensors)
        return cls(net.to(device), config["styles"], config["colours"], Calibration(**config["calibration"]), size,
                   name=path.name if path.name != "final" else path.parent.name)  # fmt: skip


def following(style_N: np.ndarray, ground_N: np.ndarray) -> np.ndarray:
    """PF: geometric mean of the probabilities that exist (NaN: not asked for); 1 where the prompt asks for nothing."""
    asked = np.stack([style_N, ground_N])
    given = ~np.isnan(asked)
    log = np.where(given, np.log(np.clip(np.where(given, asked, 1.0), 1e-12, 1.0)), 0.0).sum(axis=0)
    return np.exp(log / np.maximum(given.sum(axis=0), 1))


def fit_temperature(logits_NX: np.ndarray, labels_N: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood, from a fine geometric grid over [0.25, 4]."""
    grid = np.geomspace(0.25, 4.0, 81)

    def loss(temperature: float) -> float:
        scaled = logits_NX / temperature
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        logp = scaled[np.arange(len(labels_N)), labels_N] - np.log(np.exp(scaled).sum(axis=1))
        return float(-logp.mean())

    return float(min(grid, key=loss))


def _misfits(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        return f"tensor '{missing[0]}' is missing ({len(missing)} in all)"
    if extra:
        return f"unexpected tensor '{extra[0]}' ({len(extra)} in all)"
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            return f"tensor '{key}': expected shape {tuple(tensor.shape)}, found {tuple(found[key].shape)}"
    return ""
