"""What the contract checks watch a reward with: its connections, its autograd graphs, the memory it keeps.

Seen are Python's sockets of this process (not those of a subprocess or of a C library), graphs recorded in the calling
thread, torch tensors, numpy arrays, and from ``RSS_SLACK`` on all other memory of the process.
"""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

RSS_SLACK = 32 * 2**20  # bytes by which allocators and caches of libraries may move the process's memory


class NetworkBlocked(ConnectionError):
    """A connection was tried while none is allowed; a ConnectionError, so that clients treat it as a dead network."""


@contextmanager
def blocked_network() -> Iterator[list[str]]:
    """Refuse every connection and every look-up of a name, loopback included; yields what was tried.

    Sockets of the operating system's own (AF_UNIX) stay open: event loops and worker processes talk over them.
    """
    attempts: list[str] = []

    def refuse(what: str) -> None:
        attempts.append(what)
        raise NetworkBlocked(f"tried to {what}, while the contract check allows no connection (spec.network is False)")

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: socket.socket, *arguments: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse(f"connect to {_host(arguments[-1])}")
            return original(self, *arguments)

        return method

    def look_up(host: Any, *arguments: Any, **named: Any) -> None:
        refuse(f"look up {host}")

    with ExitStack() as patches:
        for name in ("connect", "connect_ex", "sendto"):
            patches.enter_context(mock.patch.object(socket.socket, name, guarded(getattr(socket.socket, name))))
        for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
            patches.enter_context(mock.patch.object(socket, name, look_up))
        yield attempts


def is_blocked(error: BaseException | None) -> bool:
    """Whether an error goes back to a refused connection."""
    while error is not None:
        if isinstance(error, NetworkBlocked):
            return True
        if isinstance(error, BaseExceptionGroup) and any(is_blocked(each) for each in error.exceptions):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def recorded_graphs() -> Iterator[list[int]]:
    """Gradients allowed, as in a trainer's step; yields the bytes of each tensor that autograd keeps for a backward."""
    torch = sys.modules.get("torch")
    kept: list[int] = []
    if torch is None:
        yield kept
        return

    def pack(tensor: Any) -> Any:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


@contextmanager
def traced_arrays() -> Iterator[None]:
    """Let numpy's allocations be counted by ``array_bytes``."""
    was_on = tracemalloc.is_tracing()
    if not was_on:
        tracemalloc.start()
    try:
        yield
    finally:
        if not was_on:
            tracemalloc.stop()


def array_bytes() -> int:
    """Bytes in torch tensors, and in numpy arrays made under ``traced_arrays``, that are alive after a collection."""
    gc.collect()
    total = 0
    if "numpy" in sys.modules:
        domain = tracemalloc.DomainFilter(True, sys.modules["numpy"].lib.tracemalloc_domain)
        snapshot = tracemalloc.take_snapshot().filter_traces([domain])
        total += sum(trace.size for trace in snapshot.traces)
    torch = sys.modules.get("torch")
    if torch is not None:
        # Plain tensors only: a wrapper of another type (torch.compile leaves some) may have no storage of its own.
        plain = (torch.Tensor, torch.nn.Parameter)
        tensors = (found for found in gc.get_objects() if type(found) in plain)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
        total += sum(storages.values())
    return total


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell (it is Linux that does)."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def trim_memory() -> None:
    """Collect garbage and give free memory back to the system, where it can be asked to."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _host(address: Any) -> str:
    return ":".join(map(str, address[:2])) if isinstance(address, tuple) else str(address)
