"""The processes of one call: alone, or as torchrun starts them. Work is dealt out, and nothing else is exchanged but
files in the run folder, which all processes see."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from mentor_base.batch_split import launched_processes, launched_rank
from mentor_base.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(days=14)  # of the processes that are done with their share; torchrun ends them when one fails


@dataclass(frozen=True)
class Processes:
    """Which process this is, and how many there are."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> Processes:
        """This process, in touch with the others where torchrun started several."""
        count = launched_processes()
        if count > 1:
            from torch import distributed

            if not distributed.is_initialized():
                distributed.init_process_group("gloo", timeout=PATIENCE)
        return cls(launched_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        """Whether this process makes the tables."""
        return self.rank == 0

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """The parts that this process works on."""
        return parts[self.rank :: self.count]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()

    def device(self, asked: str | None) -> str:
        """The device of this process: as the recipe says, else a GPU of its own, else the CPU.

        Raises:
            UserError: the recipe's is none, or is not there.
        """
        import torch

        if asked is not None:
            try:
                torch.empty(0, device=asked)
            except (RuntimeError, AssertionError) as error:
                why = str(error).splitlines()[0]
                raise UserError(f"device: expected one of this machine, found '{asked}': {why}") from error
            return asked
        if torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return "cpu"
