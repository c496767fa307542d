"""What tells two checkpoints apart. Free of torch."""

from __future__ import annotations

import hashlib
from pathlib import Path


def fingerprint(path: str | Path) -> str:
    """Twelve digits that change with the weights of a checkpoint (a folder, or a run folder with ``final/``)."""
    folder = Path(path)
    folder = folder / "final" if (folder / "final").is_dir() else folder
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12]
