"""Where weights come from: one way to name them, and to hold a file to its sha256.

A source is a local file or folder, or a hub id ``owner/name[@revision][:file]``. A path that exists wins; what starts
with ``.``, ``/`` or ``~`` is always a path. Hub ids are fetched by huggingface_hub when a reward loads, never when it
is constructed, and land in its cache, so that a second run needs no network.

An option of a reward's constructor, or a field of a recipe, is annotated WeightsSource: whoever validates it says where
the recipe lies (``context={"base": folder}``). Relative paths are looked for there first, then in the current folder,
and a path that can only be a path must exist.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from mentor_rewards.contract import RewardError

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<file>[^:]+))?")
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "preprocessor_config.json",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def input_places(value: str | Path, base: Path | None) -> list[Path]:
    """Where an input path may lie, in the order of the search: beside the recipe (``base``), in the current folder."""
    path = Path(value).expanduser()
    return [path] if path.is_absolute() or base is None else [base / path, path]


def _existing_or_hub(value: str | Path, info: ValidationInfo) -> str | Path:
    places = input_places(value, (info.context or {}).get("base"))
    found = next((place for place in places if place.exists()), None)
    if found is not None:
        return found
    if hub_id(value) is None:
        looked = " or ".join(map(str, places))
        raise PydanticCustomError("weights", "no such file or folder: {looked}; nor is it a hub id", {"looked": looked})
    return str(value)


WeightsSource = Annotated[str | Path, AfterValidator(_existing_or_hub)]


@dataclass(frozen=True)
class HubId:
    """``repo`` is owner/name; ``revision`` a branch, tag or commit; ``file`` a path inside the repository."""

    repo: str
    revision: str | None = None
    file: str | None = None


def hub_id(source: str | Path) -> HubId | None:
    """The hub id that a source spells; None when it can only be a local path."""
    found = _HUB_ID.fullmatch(source) if isinstance(source, str) else None
    return HubId(found["repo"], found["revision"], found["file"]) if found else None


def find_weights(source: str | Path, file: str | None = None, sha256: str | None = None) -> Path:
    """One file of weights, fetched when it is on the hub and not in the cache.

    Args:
        source: a local file, a folder or a hub id (see the top of this module).
        file: which file of a folder or repository, unless the hub id names one; a source that is a file stands for
            itself.
        sha256: what the file's checksum must be; None: anything.

    Raises:
        RewardError: nothing there, or another checksum.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if file is None:
            raise RewardError(f"{path}: expected a file of weights, found a folder")
        path = path / file
    if not path.is_file():
        named = hub_id(source)
        if named is None or Path(source).is_dir():
            raise RewardError(f"{path}: no such file of weights")
        path = _fetch_file(named, named.file or file)
    if sha256 is not None:
        found = checksum(path)
        if found != sha256.lower():
            raise RewardError(f"{path}: expected sha256 {sha256.lower()}, found {found}")
    return path


def find_folder(source: str | Path, files: Sequence[str]) -> Path:
    """A folder in the layout of transformers: a local one, or a snapshot of a repository with these files in it.

    Args:
        files: names or glob patterns to fetch; which of them have to exist is the reader's business.

    Raises:
        RewardError: nothing there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    named = hub_id(source)
    if path.exists() or named is None:
        raise RewardError(f"{path}: expected a folder, found {'a file' if path.exists() else 'nothing'}")
    return _fetch_folder(named, files)


def checksum(path: Path) -> str:
    """sha256 of a file, in hexadecimal; an unchanged file is read once per process."""
    facts = path.stat()
    return _checksum(path.resolve(), facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _checksum(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_file(named: HubId, file: str | None) -> Path:
    import huggingface_hub

    if file is None:
        raise RewardError(f"{named.repo}: expected a file of this repository; write {named.repo}:FILE")
    try:
        return Path(huggingface_hub.hf_hub_download(named.repo, file, revision=named.revision))
    except _hub_errors() as error:
        raise _not_found(named, file, error) from error


def _fetch_folder(named: HubId, files: Sequence[str]) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(named.repo, revision=named.revision, allow_patterns=list(files)))
    except _hub_errors() as error:
        raise _not_found(named, None, error) from error


def _hub_errors() -> tuple[type[Exception], ...]:
    """No network (an OSError in most libraries), switched off, no such repository, revision or file, no permission."""
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    return OSError, EntryNotFoundError, HFValidationError


def _not_found(named: HubId, file: str | None, error: Exception) -> RewardError:
    from huggingface_hub import constants

    what = f"{named.repo}{f'@{named.revision}' if named.revision else ''}{f': {file}' if file else ''}"
    flags = f"{file or ''}{f' --revision {named.revision}' if named.revision else ''}".strip()
    why = "offline" if constants.HF_HUB_OFFLINE else type(error).__name__
    return RewardError(
        f"{what}: no such path here, not in the hub's cache ({constants.HF_HUB_CACHE}), and not fetched ({why}); run "
        f"`{' '.join(f'hf download {named.repo} {flags}'.split())}` where there is a network, or name a local path"
    )
