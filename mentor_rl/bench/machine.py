"""The machine that a measurement is of: what it is called, its clock, its memory, its measured limits."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PACKAGES = ("torch", "transformers", "trl")


@dataclass(frozen=True)
class Spread:
    """Of repeated measurements."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory and, where it is used, the GPU."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def now(device: torch.device) -> float:
    """Seconds, with all work on the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PeakMemory:
    """Bytes by which memory grew at most since the object was made: of the GPU, or resident memory of the process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            _give_back()
            CLEAR.write_text("5")  # resets VmHWM, the peak; see proc(5)
            self.before = resident("VmRSS")

    def grown(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return resident("VmHWM") - self.before


def _give_back() -> None:
    """Freed memory back to the system, so that what ran before does not hide what comes (glibc keeps it)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes (Linux)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None, field
    return int(found[1]) * 1024


def copy_bandwidth(device: torch.device, size: int | None = None) -> float:
    """Bytes per second that a copy of one large tensor reads and writes together; the best of several."""
    size = size or (2**30 if device.type == "cuda" else 2**28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def product_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP per second of one large square product by ``products.linear``; the best of several."""
    from mentor_base.products import linear

    side = side or (8192 if device.type == "cuda" else 1536)
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / _best(lambda: linear(a, b), device)


def _best(work: Callable[[], object], device: torch.device, times: int = 8) -> float:
    work()
    seconds = []
    for _ in range(times):
        began = now(device)
        work()
        seconds.append(now(device) - began)
    return min(seconds)


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
