"""``python -m mentor_rewards list | show | new | check | score | serve``: rewards without the rest of the project."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mentor_rewards.cli import rewards_app
from mentor_rewards.contract import RewardError
from mentor_rewards.usage import run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0, 1 for a reward that breaks the contract, 2 for wrong input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(run(rewards_app, arguments, "python -m mentor_rewards", before="error: "))
    except RewardError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        print(f"error: {error.filename}: {error.strerror.lower()}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
