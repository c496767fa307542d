"""Pictures at the boundary: PIL RGB outside, float tensors in [-1, 1] inside.

Shapes: N pictures, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

WHITE = (255, 255, 255)


def to_pixels(images: Sequence[Image.Image], size: int | None = None) -> torch.Tensor:
    """PIL pictures -> float pixels_N3HW in [-1, 1]; alpha goes over white. ``size``: squares of that side (Lanczos)."""
    arrays = []
    for image in images:
        rgb = over_white(image)
        if size is not None and rgb.size != (size, size):
            rgb = rgb.resize((size, size), Image.Resampling.LANCZOS)
        arrays.append(np.asarray(rgb, dtype=np.uint8))
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return pixels.float().div_(127.5).sub_(1.0)


def to_images(pixels_N3HW: torch.Tensor) -> list[Image.Image]:
    """Float pixels in [-1, 1] (clamped here) -> PIL RGB."""
    bytes_NHW3 = pixels_N3HW.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(array) for array in bytes_NHW3.cpu().numpy()]


def over_white(image: Image.Image) -> Image.Image:
    """RGB of any picture; transparent parts become white.

    Raises:
        ValueError: 32-bit numbers as pixels: which of them is white is not said.
    """
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (Pillow's mode {image.mode})")
    if image.mode.startswith("I;16"):  # grey; Pillow would make all above 255 white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    rgba = image.convert("RGBA")
    ground = Image.new("RGB", rgba.size, WHITE)
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], captions: Sequence[str] = (), scale: int = 2, gap: int = 4
) -> Image.Image:
    """A sheet of equal square cells, one line of pictures per row, an optional caption under each row."""
    side = max(image.width for row in rows for image in row) * scale
    columns = max(len(row) for row in rows)
    line = side + gap + (14 if captions else 0)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, len(rows) * line + gap), (236, 236, 236))
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        top = gap + r * line
        for c, image in enumerate(row):
            cell = over_white(image).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(cell, (gap + c * (side + gap), top))
        if r < len(captions):
            draw.text((gap + 1, top + side + 1), captions[r], fill=(40, 40, 40))
    return sheet


def middle(picture: Image.Image) -> Image.Image:
    """The largest square around the centre."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
