"""The run folder: everything that one run writes, in one place, and nothing lost on resume.

recipe.yaml      the resolved recipe, written first
manifest.json    versions, hardware, seeds, seconds: what a checkpoint card needs
metrics.jsonl    one JSON object a line: {"step": 120, "seconds": 88.1, "loss": 3.1, ...}
samples/         pictures: step_000120_subject.png
state/           resumable states of the trainer
results/         benchmark results
broken.ndjson    rows whose pictures could not be decoded and were skipped, if there were any
final/           the model that the run made
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from mentor_base.errors import UserError

MARKER = "recipe.yaml"
MANIFEST = "manifest.json"
BROKEN = "broken.ndjson"  # JSON lines like the rest, but a glob over rows must not take it for rows


class RunFolder:
    """A run's folder. ``RunFolder.open`` creates it, or takes it up again when it holds the same recipe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base_seconds = 0.0
        self._opened = time.monotonic()

    @classmethod
    def open(
        cls,
        path: str | Path,
        recipe: Mapping[str, Any],
        reread: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda held: held,
    ) -> RunFolder:
        """Create the folder for this recipe, or reopen it to resume. A folder with another recipe is an error, unless
        that one was refused before it began: a corrected recipe takes its place.

        ``reread`` says how a kept recipe reads today: settings may have come since its run began.
        """
        folder = cls(Path(path))
        marker = folder.path / MARKER
        text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
        if marker.exists():
            held = reread(yaml.safe_load(marker.read_text(encoding="utf-8")))
            fresh = yaml.safe_load(text)
            if held == fresh and (folder.path / MANIFEST).exists():
                folder._base_seconds = folder.logged_seconds()
                return folder
            if held != fresh and folder._begun():
                raise UserError(
                    f"{folder.path}: holds another run (differs in {_first_difference(held, fresh)}); "
                    "choose another run=..., or delete the folder"
                )
        elif folder.path.exists() and any(folder.path.iterdir()):
            raise UserError(
                f"{folder.path}: expected an empty folder or a run, found other files; choose another run=..."
            )
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(marker, text)
        folder.write_manifest(seed=recipe.get("seed"))
        return folder

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def broken_file(self) -> Path:
        return self.path / BROKEN

    @property
    def finished(self) -> bool:
        """Whether the run has written its model."""
        return (self.final / "config.json").exists()

    @property
    def seconds(self) -> float:
        """Seconds of work in this folder, earlier sessions included."""
        return self._base_seconds + time.monotonic() - self._opened

    def recipe(self) -> dict[str, Any]:
        """The resolved recipe of the run."""
        loaded: dict[str, Any] = yaml.safe_load((self.path / MARKER).read_text(encoding="utf-8"))
        return loaded

    def log(self, step: int, **values: Any) -> None:
        """Append one line of metrics."""
        line = json.dumps({"step": step, "seconds": round(self.seconds, 2), **values}, allow_nan=True)
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """All lines of metrics, in order; a line cut short by a kill is left out."""
        if not self.metrics_file.exists():
            return
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    def logged_seconds(self) -> float:
        """Seconds of work up to the last line of metrics; 0 without any."""
        return float(max((line["seconds"] for line in self.metrics()), default=0.0))

    def rewind(self, step: int) -> None:
        """Forget metrics after ``step``: a resumed run writes those steps again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        write_atomically(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))

    def sample_path(self, step: int, name: str) -> Path:
        """Where the picture of this step goes."""
        folder = self.path / "samples"
        folder.mkdir(exist_ok=True)
        return folder / f"step_{step:06d}_{name}.png"

    def result_path(self, name: str) -> Path:
        """Where a benchmark's JSON goes."""
        folder = self.path / "results"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.json"

    def write_manifest(self, **facts: Any) -> None:
        """Add facts to manifest.json; earlier ones stay."""
        file = self.path / MANIFEST
        held = json.loads(file.read_text(encoding="utf-8")) if file.exists() else surroundings()
        held.update(facts)
        write_atomically(file, json.dumps(held, indent=2) + "\n")

    @contextmanager
    def writing_final(self) -> Iterator[Path]:
        """A folder to fill, which becomes ``final`` when the block ends well: no kill and no power cut leaves half a
        model there."""
        staging = self.path / ".final.partial"
        shutil.rmtree(staging, ignore_errors=True)
        yield staging
        flush(staging)
        staging.rename(self.final)

    def manifest(self) -> dict[str, Any]:
        """The facts written so far."""
        loaded: dict[str, Any] = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        return loaded

    def _begun(self) -> bool:
        """Whether the run has left anything beyond what ``open`` writes."""
        return any(file.name not in (MARKER, MANIFEST) for file in self.path.iterdir())


def surroundings() -> dict[str, Any]:
    """Versions and hardware, for manifests and cards."""
    packages = ("torch", "transformers", "trl", "accelerate", "mentor-rl")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "versions": versions,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a kill leaves either the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a full disk: the same command is to find the folder as it was
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


def flush(folder: Path) -> None:
    """Bring all files of a folder to the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _first_difference(held: Any, fresh: Any, where: str = "") -> str:
    if isinstance(held, dict) and isinstance(fresh, dict):
        for key in [*held, *fresh]:
            if held.get(key) != fresh.get(key):
                return _first_difference(held.get(key), fresh.get(key), f"{where}.{key}" if where else str(key))
    return f"{where}: {held!r} there, {fresh!r} now"
