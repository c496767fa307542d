"""Rows and pictures for the tests of sources; the same five rows in every format."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image


def save_pictures(folder: Path) -> None:
    """0.png .. 4.png (their red tells them apart), mask.png, clear.png; float.tif, text.png, cut.png are none."""
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(folder / "clear.png")
    for k in range(5):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(folder / f"{k}.png")
    Image.new("L", (8, 8), 255).save(folder / "mask.png")
    (folder / "text.png").write_text("not a picture")
    Image.new("F", (8, 8), 0.5).save(folder / "float.tif")
    Image.effect_noise((64, 64), 90).save(folder / "noise.png")
    (folder / "cut.png").write_bytes((folder / "noise.png").read_bytes()[:900])


def row(**changes: Any) -> dict[str, Any]:
    return {"task": "subject", "text": "<image> this fox", "images": ["0.png"], "target": "1.png", **changes}


def write_jsonl(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def red(image: Image.Image) -> int:
    """Which of the numbered pictures it is."""
    value = image.convert("RGB").getpixel((0, 0))
    assert isinstance(value, tuple)
    return int(value[0])
