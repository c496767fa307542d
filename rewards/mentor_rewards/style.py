"""Is the picture drawn in the style that the prompt asks for?"""

from __future__ import annotations

from mentor_rewards.contract import RewardSpec
from mentor_rewards.label_probability import LabelProbability


class Style(LabelProbability):
    """Probability of the style in metadata["style"] under a small classifier, in [0, 1]."""

    key = "style"
    spec = RewardSpec(
        name="style",
        version="1",
        metadata=frozenset({"style"}),
        range=(0.0, 1.0),
        probes=frozenset({"prompt"}),
    )
