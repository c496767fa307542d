"""``mentor sample``: pictures for one prompt, from an exported folder or a run.

Shapes: N samples of the prompt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mentor_base.data.schema import IMAGE_MARK, Prompt
from mentor_base.errors import UserError
from mentor_base.settings import Sampling
from mentor_rl.pictures import check_picture_name, open_picture, save_picture

GRID_COLUMNS = 6


def draw_samples(
    checkpoint: Path,
    text: str,
    pictures: Sequence[Path],
    out: Path,
    *,
    number: int = 1,
    grid: bool = False,
    sampling: Sampling | None = None,
) -> list[Path]:
    """Draw ``number`` samples and write them: one file, a numbered file each, or with ``grid`` one sheet.

    Draws on a GPU where there is one; prints each path and the seconds. The same checkpoint, prompt, sampling and
    number give the same pictures.
    """
    sampling = sampling or Sampling()
    check_picture_name(out)
    prompt = user_prompt(text, [open_picture(path) for path in pictures])
    import torch

    from mentor_base.callbacks import hide_bars
    from mentor_base.checkpoint import load_policy
    from mentor_base.generate import draw

    hide_bars()
    model, processor = load_policy(checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    drawn = draw(model, processor, [prompt], group_size=number, sampling=sampling, seed=sampling.seed)
    seconds = time.perf_counter() - start
    if grid:
        files = [out]
        save_picture(sample_sheet(prompt, drawn.images), out)
    else:
        files = numbered(out, number)
        for file, image in zip(files, drawn.images, strict=True):
            save_picture(image, file)
    for file in files:
        print(file)
    print(f"{number} picture{'s' if number > 1 else ''} in {seconds:.1f} s")
    return files


def user_prompt(text: str, pictures: Sequence[Image.Image]) -> Prompt:
    """The prompt; a text without marks gets one mark per picture in front, as the recipes' prompts have it."""
    if IMAGE_MARK not in text:
        text = " ".join([IMAGE_MARK] * len(pictures) + [text])
    if not text.replace(IMAGE_MARK, "").strip():
        raise UserError("--text: expected a caption, found an empty text")
    return Prompt(text, tuple(pictures), meta={"where": "--text"})


def sample_sheet(prompt: Prompt, images: Sequence[Image.Image]) -> Image.Image:
    """The references first, then the samples, in rows of GRID_COLUMNS; the prompt stands below."""
    from mentor_base.images import contact_sheet

    side = images[0].width
    cells = [picture.resize((side, side), Image.Resampling.LANCZOS) for picture in prompt.images]
    cells += images
    rows = [cells[i : i + GRID_COLUMNS] for i in range(0, len(cells), GRID_COLUMNS)]
    captions = [""] * (len(rows) - 1) + [prompt.plain_text]
    return contact_sheet(rows, captions, scale=max(1, 128 // side))


def numbered(out: Path, number: int) -> list[Path]:
    """``out.png`` for one sample; ``out_00.png``, ``out_01.png``, ... for several."""
    if number == 1:
        return [out]
    width = max(2, len(str(number - 1)))
    return [out.with_name(f"{out.stem}_{i:0{width}d}{out.suffix}") for i in range(number)]
