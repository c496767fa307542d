"""LAION's aesthetic predictor: how much people like a picture, on CLIP ViT-L/14 (improved-aesthetic-predictor).

The published head is five linear layers with nothing but dropout between them, hence one affine map w·e + b of the
unit embedding e: it is collapsed in float64 when it is loaded, and its hard bounds are b ± |w|. They are -12.76 and
23.23, not 1 and 10; pictures lie at 4 to 7. The prompt is not looked at: painterly centred portraits maximise it.

Departure: the central crop is that of transformers, one pixel off upstream's where an oblong picture has an odd margin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mentor_rewards.clip_reward import CLIP_L14, ClipReward
from mentor_rewards.contract import RewardBatch, RewardError, RewardOutput, RewardSpec
from mentor_rewards.embedding import embed_once
from mentor_rewards.weights import WeightsSource, checksum, find_weights

if TYPE_CHECKING:
    import numpy as np
    import torch

_FILE = "sac+logos+ava1-l14-linearMSE.pth"
_PUBLISHED = "camenduru/improved-aesthetic-predictor"
_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
_LAYERS = (0, 2, 4, 6, 7)  # places of the linear layers in upstream's Sequential


class Aesthetic(ClipReward):
    """LAION's aesthetic predictor on CLIP ViT-L/14: about 4 to 7, hard bounds by the head's weights."""

    spec = RewardSpec(name="aesthetic", version="2", range=(-12.76, 23.24), licence="Apache-2.0")

    def __init__(
        self, head: WeightsSource = _PUBLISHED, checkpoint: WeightsSource = CLIP_L14, sha256: str | None = None
    ) -> None:
        """
        Args:
            head: the published file, a folder or a hub id that has it (the default is a copy of the file on GitHub,
                held to its checksum), or another head of the same layers.
            checkpoint: folder or hub id of the CLIPModel that the head was trained on.
            sha256: what the head's checksum must be; the published one's for the default.
        """
        super().__init__(checkpoint)
        self.spec = type(self).spec
        if head != _PUBLISHED:
            self.spec = replace(self.spec, range=(None, None), licence="unknown")
        self.head, self.sha256 = head, sha256 or (_SHA256 if head == _PUBLISHED else None)
        self._weight: np.ndarray | None = None
        self._bias = 0.0

    def check_files(self) -> None:
        """The head, and the tower's."""
        find_weights(self.head, _FILE, self.sha256)
        super().check_files()

    def load(self, device: str, dtype: str) -> None:
        """Take the shared tower and collapse the head.

        Raises:
            RewardError: no such weights, other layers, or a head for another width.
        """
        import numpy as np

        from mentor_rewards.pretrained import read_tensors

        path = find_weights(self.head, _FILE, self.sha256)
        weight, bias = affine_map(read_tensors(path), str(path))
        super().load(device, dtype)
        width = self.tower.width
        if len(weight) != width:
            self.unload()
            raise RewardError(f"{path}: expected a head for embeddings of {width} channels, found {len(weight)}")
        self._weight, self._bias = weight, bias
        reach = float(np.linalg.norm(weight))
        weights = {**self.spec.weights, path.name: checksum(path)}
        self.spec = replace(self.spec, range=(bias - reach, bias + reach), weights=weights)

    def unload(self) -> None:
        """Let go of tower and head."""
        super().unload()
        self._weight = None

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One number per picture."""
        tower, weight = self.tower, self._weight
        if not len(batch) or weight is None:
            return RewardOutput([])
        unit = embed_once(batch.shared, tower.key, batch.images, lambda items: tower.image_embeddings(items).numpy())
        return RewardOutput([float(score) for score in unit.astype(weight.dtype) @ weight + self._bias])


def affine_map(state: Mapping[str, torch.Tensor], where: str) -> tuple[np.ndarray, float]:
    """The head as (w [C], b): score = w·e + b, multiplied out in float64.

    Args:
        state: ``layers.{0,2,4,6,7}.{weight,bias}``; the last layer has one output.
        where: names the file in errors.
    """
    from mentor_rewards.pretrained import check_names

    check_names(set(state), {f"layers.{n}.{kind}" for n in _LAYERS for kind in ("weight", "bias")}, where)
    weights = [state[f"layers.{n}.weight"].double().numpy() for n in _LAYERS]
    biases = [state[f"layers.{n}.bias"].double().numpy() for n in _LAYERS]
    total, offset = weights[0], biases[0]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        if weight.shape[1] != len(total):
            raise RewardError(f"{where}: layers of widths that do not fit: {[w.shape for w in weights]}")
        total, offset = weight @ total, weight @ offset + bias
    if total.shape[0] != 1:
        raise RewardError(f"{where}: expected a head with one output, found {total.shape[0]}")
    return total[0], float(offset[0])
