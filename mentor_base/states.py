"""States of a run on the disk: there whole or not at all, and checked byte by byte when they are taken up.

    state/.partial/checkpoint-40/        while it is written
    state/checkpoint-40/                 renamed to this once every file is flushed to the disk
    state/checkpoint-40/complete.json    its files: sizes in bytes, SHA-256
    state/checkpoint-40.damaged/         set aside: a file is no longer what was written

A kill, a full disk or a power cut leaves the states before as they were. A damaged state is never deleted and never
used: the one before it is, with a warning that names both.

    class MyTrainer(WholeStates, Trainer): ...     # writes so
    state = take_up(run, main_process)             # reads so
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from mentor_base.engines import of_main_process
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder, write_atomically

logger = logging.getLogger(__name__)

MARKER = "complete.json"
PREFIX = "checkpoint-"  # the Trainer's own name for its states
PARTIAL = ".partial"
DAMAGED = ".damaged"
READERS = 4  # files that are hashed at the same time


class WholeStates(Trainer):
    """A Trainer whose states appear whole or not at all. On several nodes the run folder has to be a shared one."""

    def write_state_parts(self, folder: Path) -> None:
        """What a state holds beside the Trainer's own files; called on every process. Nothing by itself."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / PARTIAL)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        states = Path(self.args.output_dir)
        name = f"{PREFIX}{self.state.global_step}"
        with _removed_on_failure(states / PARTIAL, self.is_world_process_zero()):
            super()._save_checkpoint(model, trial)
            self.write_state_parts(states / PARTIAL / name)
            self.accelerator.wait_for_everyone()  # every process writes the state of its own random numbers
            if self.is_world_process_zero():
                publish(states / PARTIAL / name, states)


@contextmanager
def _removed_on_failure(folder: Path, main_process: bool) -> Iterator[None]:
    """A state that could not be written must not fill the disk that it did not fit on."""
    try:
        yield
    except BaseException:
        if main_process:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(written: Path, states: Path) -> Path:
    """Flush the files of a state, note their sizes and checksums, and rename its folder into ``states``."""
    names = _files(written)
    with ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(lambda name: _flushed_digest(written / name), names))
    facts = {
        "files": {name: (written / name).stat().st_size for name in names},
        "sha256": dict(zip(names, digests, strict=True)),
    }
    write_atomically(written / MARKER, json.dumps(facts, indent=1) + "\n")
    state = states / written.name
    if state.exists():
        shutil.rmtree(state)
    written.rename(state)
    _flush_folder(states)
    return state


def fault_of(state: Path) -> str | None:
    """What is wrong with a state, in words; None when every file is what was written. Reads all of it."""
    marker = state / MARKER
    try:
        facts = json.loads(marker.read_text(encoding="utf-8"))
        sizes, digests = facts["files"], facts["sha256"]
    except FileNotFoundError:
        return f"{MARKER} is missing"
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        return f"{MARKER} cannot be read"
    for name, size in sizes.items():
        file = state / name
        found = file.stat().st_size if file.is_file() else "no file"
        if found != size:
            return f"{name}: expected {size} bytes, found {found}"
    with ThreadPoolExecutor(READERS) as pool:
        found_digests = dict(zip(digests, pool.map(lambda name: _digest(state / name), digests), strict=True))
    for name, digest in digests.items():
        if found_digests[name] != digest:
            return f"{name}: expected SHA-256 {digest[:12]}..., found {found_digests[name][:12]}..."
    return None


def newest_sound(states: Path) -> Path | None:
    """The newest state that is as it was written, or None where there is no state at all.

    What a kill left half written is deleted; damaged states newer than the one returned are set aside.

    Raises:
        UserError: there are states, but every one is damaged: starting anew is not for us to decide.
    """
    shutil.rmtree(states / PARTIAL, ignore_errors=True)
    for state in reversed(all_states(states)):
        fault = fault_of(state)
        if fault is None:
            return state
        aside = _set_aside(state)
        logger.warning("%s: a damaged state (%s); set aside as %s", state, fault, aside.name)
    damaged = sorted(states.glob(f"{PREFIX}*{DAMAGED}*"))
    if damaged:
        raise UserError(
            f"{states}: expected a whole state, found damaged ones only ({', '.join(path.name for path in damaged)}); "
            "delete them to start this run anew"
        )
    return None


def take_up(run: RunFolder, main_process: bool = True) -> Path | None:
    """Where to resume a run: its newest sound state, or None to start anew. Later metrics are forgotten.

    The main process looks and tells the others. Make the RunLogCallback before: it reads the time spent so far.
    """
    state = None
    if main_process:
        state = newest_sound(run.state)
        run.rewind(step_of(state) if state is not None else -1)
        if state is not None:
            logger.warning("%s: goes on from step %d", run.path, step_of(state))
    return of_main_process(state)


def remove(state: Path) -> None:
    """Delete a state so that a kill in the midst leaves nothing that looks like one."""
    doomed = state.parent / PARTIAL / state.name
    doomed.parent.mkdir(exist_ok=True)
    shutil.rmtree(doomed, ignore_errors=True)
    state.rename(doomed)
    shutil.rmtree(doomed)


def all_states(states: Path) -> list[Path]:
    """The states in a folder, oldest first."""
    found = [path for path in states.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def step_of(state: Path) -> int:
    """The optimizer step of a state folder."""
    return int(state.name.removeprefix(PREFIX))


def _set_aside(state: Path) -> Path:
    aside, count = state.with_name(state.name + DAMAGED), 1
    while aside.exists():
        count += 1
        aside = state.with_name(f"{state.name}{DAMAGED}-{count}")
    state.rename(aside)
    return aside


def _files(state: Path) -> list[str]:
    return [path.relative_to(state).as_posix() for path in sorted(state.rglob("*")) if path.is_file()]


def _flushed_digest(file: Path) -> str:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    return _digest(file)


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush_folder(folder: Path) -> None:
    """Make a rename in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
