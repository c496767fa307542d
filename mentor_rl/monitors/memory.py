"""Peak memory of the main process. Free of trl."""

from __future__ import annotations

import resource
import sys

import torch

GIB = 2**30


def peak_memory() -> dict[str, float]:
    """``memory/host`` since the process began (resident set), ``memory/device`` since the last call; GiB.

    The latter only where there is a CUDA device: what torch's allocator gave out.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB on Linux
    peaks = {"memory/host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB, 3)}
    if torch.cuda.is_available():
        peaks["memory/device"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
        torch.cuda.reset_peak_memory_stats()
    return peaks
