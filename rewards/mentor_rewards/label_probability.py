"""The probability that a small classifier gives to a label of the prompt; what ``style`` and ``subject`` share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardOutput, RewardSpec, nearest
from mentor_rewards.weights import MODEL_FILES, WeightsSource, checksum, find_folder

if TYPE_CHECKING:
    from mentor_rewards.classifier import ConvClassifier


class LabelProbability(Reward):
    """Probability of the label in ``metadata[key]`` under a ConvClassifier, in [0, 1]."""

    key: ClassVar[str]
    spec: RewardSpec

    def __init__(self, checkpoint: WeightsSource) -> None:
        """
        Args:
            checkpoint: folder or hub id of a ConvClassifier; see classifier.py.
        """
        self.checkpoint = checkpoint
        self._model: ConvClassifier | None = None

    def check_files(self) -> None:
        """The classifier's."""
        from mentor_rewards.pretrained import read_json, weights_of

        folder = find_folder(self.checkpoint, MODEL_FILES)
        read_json(folder / "config.json")
        weights_of(folder)

    def load(self, device: str, dtype: str) -> None:
        """Read the classifier."""
        from mentor_rewards.classifier import ConvClassifier

        folder = find_folder(self.checkpoint, MODEL_FILES)
        self._model = ConvClassifier.load(folder, device, dtype)
        weights = folder / "model.safetensors"
        self.spec = replace(self.spec, weights={weights.name: checksum(weights)})

    def unload(self) -> None:
        """Drop the classifier."""
        self._model = None

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One probability per picture; None for a label that the classifier does not know."""
        if self._model is None:
            raise RewardError("score before load")
        if not len(batch):
            return RewardOutput([])
        index = self._model.index
        probabilities_NP = self._model.probabilities(batch.images)
        scores: list[float | None] = []
        reasons: list[str | None] = []
        for row, facts in enumerate(batch.metadata):
            label = facts.get(self.key)
            known = label in index
            scores.append(float(probabilities_NP[row, index[str(label)]]) if known else None)
            reasons.append(None if known else f"unknown {self.key} {label!r}; {nearest(str(label), index)}")
        return RewardOutput(scores, reasons)
