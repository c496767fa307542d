"""Image rewards behind one contract; usable from any trainer.

What a plugin author needs is here; the rest is in ``composite``, ``registry``, ``aggregate`` and ``testing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    """The contract, when it is asked for: a command line that prints its help should not wait for pydantic."""
    if name not in __all__:
        raise AttributeError(f"module 'mentor_rewards' has no attribute '{name}'")
    from mentor_rewards import contract

    return getattr(contract, name)
