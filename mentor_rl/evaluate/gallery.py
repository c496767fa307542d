"""The gallery of a benchmark: the first items' references, then one picture of each row, the prompt below.

As one PNG beside the table, and as single pictures with their scores for the report (mentor_rl/gallery.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError
from mentor_base.images import contact_sheet
from mentor_rl import gallery
from mentor_rl.evaluate.benchmark import Facts, Item, Scored
from mentor_rl.evaluate.picture_folder import PictureFolder

ITEMS = 10
SIDE = 192  # pixels of a cell


def save_gallery(sheet: Path, pictures: Path, folders: Mapping[str, PictureFolder], scored: Sequence[Scored]) -> None:
    """Write the sheet and the folder of pictures: ITEMS items spread over the benchmark, of the first seed."""
    items, seed = scored[0].items, scored[0].seeds[0]
    some = items[:: max(1, len(items) // ITEMS)][:ITEMS]
    prompts = [_small(item) for item in some]
    drawn = {name: [_cell(folder, item.id, seed) for item in some] for name, folder in folders.items()}
    lines = [
        [*map(_square, prompt.images), *(images[place] for images in drawn.values())]
        for place, prompt in enumerate(prompts)
    ]
    captions = [f"{prompt.plain_text}   [{', '.join(drawn)}]" for prompt in prompts]
    contact_sheet(lines, captions, scale=1).save(sheet)
    scores = {row.row: [_numbers(row.facts.get((item.id, seed), {})) for item in some] for row in scored}
    gallery.save_rows(pictures, prompts, {name: (images, scores[name]) for name, images in drawn.items()})


def _small(item: Item) -> Prompt:
    prompt = item.prompt()
    return Prompt(prompt.text, tuple(map(_square, prompt.images)), prompt.subject, prompt.meta)


def _cell(folder: PictureFolder, item: str, seed: int) -> Image.Image:
    try:
        return _square(folder.open(item, seed))
    except UserError:  # with incomplete: score, the table says how many
        return Image.new("RGB", (SIDE, SIDE), "grey")


def _square(picture: Image.Image) -> Image.Image:
    """The whole picture in a square cell of SIDE, on white."""
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (SIDE, SIDE), "white")
    cell.paste(picture.resize(size, method), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return cell


def _numbers(facts: Facts) -> dict[str, float | None]:
    """What of a picture's facts is a number, or a list of them (passes of a judge: their mean)."""
    out: dict[str, float | None] = {}
    for name, value in facts.items():
        values = value if isinstance(value, list) else [value]
        if values and all(isinstance(each, (int, float)) for each in values):
            out[name] = round(sum(map(float, values)) / len(values), 5)
    return out
