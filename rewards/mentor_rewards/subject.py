"""Does the picture show the subject that the prompt asks for, in whatever style?"""

from __future__ import annotations

from mentor_rewards.contract import RewardSpec
from mentor_rewards.label_probability import LabelProbability


class Subject(LabelProbability):
    """Probability of the subject in metadata["subject_id"] under a small classifier, in [0, 1]."""

    key = "subject_id"
    spec = RewardSpec(
        name="subject",
        version="1",
        metadata=frozenset({"subject_id"}),
        range=(0.0, 1.0),
        probes=frozenset({"prompt"}),
    )
