"""``mentor rewards ...``: the commands of mentor_rewards."""

from __future__ import annotations

from mentor_rewards.cli import rewards_app

__all__ = ["rewards_app"]
