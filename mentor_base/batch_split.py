"""The processes of a run, and how a batch over all of them is cut into micro-batches.

Free of torch: plans are made without a process group.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from mentor_base.errors import UserError
from mentor_base.settings import Optimisation


def launched_processes() -> int:
    """How many processes this run was started with: torchrun and accelerate launch say so."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Which of them this one is: 0 is the first, and alone there is no other."""
    return int(os.environ.get("RANK", "0"))


def launched_engine() -> str | None:
    """What deals out a run's weights or optimizer over its processes, as accelerate launch says; None: each has all."""
    for name in ("DeepSpeed", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            return name
    return None


class BatchSplit(NamedTuple):
    """Attributes: micro: examples per forward pass and process. accumulation: passes per optimizer step."""

    micro: int
    accumulation: int


def split_batch(optimisation: Optimisation, processes: int) -> BatchSplit:
    """The cut that ``batch``, ``micro_batch`` and the number of processes decide.

    Raises:
        UserError: when batch is no multiple of micro_batch times the number of processes.
    """
    micro = optimisation.micro_batch or max(1, optimisation.batch // processes)
    if optimisation.batch % (micro * processes):
        raise UserError(
            f"optimisation.batch: expected a multiple of micro_batch x processes = {micro} x {processes}, "
            f"found {optimisation.batch}"
        )
    return BatchSplit(micro, optimisation.batch // (micro * processes))
