"""The gallery of a benchmark: the first items' references, then one picture of each row, the prompt below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from mentor_base.images import contact_sheet
from mentor_rl.evaluate.benchmark import Item
from mentor_rl.evaluate.picture_folder import PictureFolder

ITEMS = 10
SIDE = 192  # pixels of a cell


def picture_gallery(items: Sequence[Item], rows: Mapping[str, PictureFolder], seed: int) -> Image.Image:
    """One line per item, spread over the whole benchmark; a missing or broken picture leaves a grey cell."""
    step = max(1, len(items) // ITEMS)
    lines, captions = [], []
    for item in items[::step][:ITEMS]:
        prompt = item.prompt()
        drawn = [_cell(folder, item.id, seed) for folder in rows.values()]
        lines.append([_square(picture) for picture in prompt.images] + drawn)
        captions.append(f"{prompt.plain_text}   [{', '.join(rows)}]")
    return contact_sheet(lines, captions, scale=1)


def _cell(folder: PictureFolder, item: str, seed: int) -> Image.Image:
    from mentor_base.errors import UserError

    try:
        return _square(folder.open(item, seed))
    except UserError:  # with incomplete: score, the table says how many
        return Image.new("RGB", (SIDE, SIDE), "grey")


def _square(picture: Image.Image) -> Image.Image:
    """The whole picture in a square cell of SIDE, on white."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    if max(small.size) < SIDE:
        scale = SIDE / max(small.size)
        small = small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.NEAREST)
    cell = Image.new("RGB", (SIDE, SIDE), "white")
    cell.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return cell
