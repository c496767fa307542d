"""``mentor export``: a finished run as one folder that loads anywhere, with a model card and the licences.

A policy (kinds sft and grpo) becomes what MentorForConditionalGeneration.from_pretrained and
MentorProcessor.from_pretrained read. A tokenizer or a scorer is copied as the run made it. With a reference's format a
policy, from a run or from a folder of ours, becomes one file with that project's names (interchange/exporting.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mentor_base.errors import UserError
from mentor_base.runlog import MARKER, RunFolder
from mentor_rl.card import write_card
from mentor_rl.monitors.best import FOLDER as BEST
from mentor_rl.monitors.best import best_of

Dtype = Literal["float32", "float16", "bfloat16"]
POLICY_KINDS = ("sft", "grpo")


def export_run(run_path: Path, out: Path, dtype: Dtype = "float32", best: bool = False) -> Path:
    """Write the run's model, card, recipe, curves and pictures to ``out``, all or nothing.

    ``best``: the policy in RUN/best instead of the last one; the run need not be finished.

    Raises:
        UserError: not a run, not finished, or ``out`` holds something.
    """
    run = _run_with_best(run_path) if best else _finished_run(run_path)
    kind = str(run.recipe().get("kind"))
    if kind not in POLICY_KINDS and dtype != "float32":
        raise UserError(f"--dtype: expected float32, since a run of kind '{kind}' is copied as it is; found {dtype}")
    with new_folder(out) as folder:
        if kind in POLICY_KINDS:
            _write_policy(run.path / BEST if best else run.path, folder, dtype)
        else:
            shutil.copytree(run.final, folder, dirs_exist_ok=True)
        write_card(run, folder, dtype, best_of(run.path) if best else None)
        make_readable(folder)
    return out


def export_file(source: Path, out: Path, layout: Literal["mentor", "llamagen"], dtype: Dtype | None = None) -> Path:
    """Write a policy as one file with a reference's names, all or nothing; ``dtype`` defaults to the stored one.

    Raises:
        UserError: no policy in ``source``, ``out`` exists, or the layout cannot hold the policy.
    """
    from mentor_base.interchange.exporting import export_reference

    if out.exists():
        raise UserError(f"{out}: expected the name of a new file, found {'a folder' if out.is_dir() else 'a file'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        export_reference(source, temporary, layout, dtype)
        temporary.rename(out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def _write_policy(source: Path, folder: Path, dtype: Dtype) -> None:
    from mentor_base.callbacks import hide_bars
    from mentor_base.checkpoint import load_policy, save_policy

    hide_bars()
    model, processor = load_policy(source)
    save_policy(model, processor, folder, dtype=dtype)


def make_readable(folder: Path) -> None:
    """safetensors writes files that only their owner reads; an export is meant to be passed on."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)


def _finished_run(path: Path) -> RunFolder:
    run = _run(path)
    if not run.finished:
        kind = run.recipe().get("kind")
        if kind == "evaluate":
            raise UserError(f"{path}: expected a run that made a model, found a benchmark")
        raise UserError(f"{path}: expected a finished run, found no model in {run.final}; train it to the end first")
    return run


def _run_with_best(path: Path) -> RunFolder:
    run = _run(path)
    if best_of(path) is None:
        raise UserError(f"{path}: expected a run with a best policy (monitoring.best), found none in {path / BEST}")
    return run


def _run(path: Path) -> RunFolder:
    if not path.is_dir():
        raise UserError(f"{path}: expected a run folder, found {'a file' if path.exists() else 'no such folder'}")
    if not (path / MARKER).exists():
        raise UserError(f"{path}: expected a run folder (with {MARKER}), found a folder of another kind")
    return RunFolder(path)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes ``out`` when all went well, and is gone when not."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: expected a folder to write, found a file")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: expected a new or empty folder, found {next(out.iterdir()).name} in it")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.resolve().parent / f".{out.resolve().name}.{os.getpid()}"
    temporary.mkdir()
    try:
        yield temporary
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
