"""Pictures that a user names: read with one line of error, written whole or not at all. Free of torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mentor_base.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def open_picture(path: str | Path, upright: bool = False) -> Image.Image:
    """The whole picture, decoded, RGB; transparent parts over white; ``upright``: turned as its EXIF says.

    Raises:
        UserError: missing, not a picture, truncated, or too large to be one.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: expected a picture, found {'a folder' if file.is_dir() else 'no such file'}")
    try:
        with Image.open(file) as image:
            rgba = (ImageOps.exif_transpose(image) if upright else image).convert("RGBA")
    except UnidentifiedImageError as error:
        raise UserError(f"{file}: expected a picture, found a file of another kind") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: cannot read this picture: {error}") from error
    ground = Image.new("RGB", rgba.size, "white")
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def pictures_below(folder: Path) -> list[Path]:
    """The pictures of a folder and of what lies below it, by their endings; hidden files are left out."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(file for file in found if not file.name.startswith("."))


def unreadable(files: Sequence[Path]) -> list[str]:
    """The errors of those files that are no whole pictures."""
    faults = []
    for file in files:
        try:
            open_picture(file)
        except UserError as error:
            faults.append(str(error))
    return faults


def check_picture_name(path: Path) -> None:
    """Refuse, before any work, a file name that no picture format belongs to."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: expected a picture name that ends in {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise UserError(f"{path}: expected a file to write, found a folder")


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture; its folder is made when needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    image.save(temporary)
    temporary.replace(path)
