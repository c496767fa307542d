"""Image rewards behind one contract; usable from any trainer.

What a plugin author needs is here; the rest is in ``composite``, ``registry``, ``aggregate`` and ``testing``.
"""

from mentor_rewards.contract import (
    AsyncReward,
    Reward,
    RewardBatch,
    RewardEntry,
    RewardError,
    RewardFailure,
    RewardOutput,
    RewardSpec,
)

__all__ = [
    "AsyncReward",
    "Reward",
    "RewardBatch",
    "RewardEntry",
    "RewardError",
    "RewardFailure",
    "RewardOutput",
    "RewardSpec",
]
