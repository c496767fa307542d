"""Targets as the squares that a tokenizer encodes.

The answer to words alone is cropped to its middle, as in MENTOR. Any other target is squashed, as references are
(processor.py), so that both show a thing at the same place.

Against MENTOR: it crops the targets of reconstruction too, though not their references, and squashes those of words
that have a side below 512 px.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from PIL import Image

from mentor_base.images import middle, to_pixels


def target_pixels(targets: Iterable[tuple[str, Image.Image]], size: int) -> torch.Tensor:
    """(task, target) of each row -> pixels [N, 3, size, size] in [-1, 1]."""
    return to_pixels([middle(target) if task == "t2i" else target for task, target in targets], size)
