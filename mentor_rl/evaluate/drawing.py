"""Items -> pictures on disk, dealt out over processes.

What is drawn for (item, seed) depends on the policy, the sampling, the seed and the item's id alone. Batches are cut
from the whole list of items before they are dealt out, and one that a kill left half done is drawn again as a whole, so
that even the last bits of a matrix product are those of an unbroken call by one process.

Shapes: K items, G seeds (N = K * G pictures, the seeds of an item are neighbours), L image tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.progress import ProgressBar
from mentor_base.settings import Sampling
from mentor_rl.evaluate.benchmark import Item
from mentor_rl.evaluate.picture_folder import PictureFolder
from mentor_rl.evaluate.processes import Processes
from mentor_rl.pictures import save_picture

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from mentor_base.model import MentorForConditionalGeneration
    from mentor_base.processor import MentorProcessor

STREAM = 3  # apart from those of training and of the monitors (rollout.py)


@dataclass(frozen=True)
class Batch:
    """Pictures drawn together: every seed of every item."""

    items: tuple[Item, ...]
    seeds: tuple[int, ...]


def batches(items: Sequence[Item], seeds: Sequence[int], size: int) -> list[Batch]:
    """Cut the whole work into batches of at most ``size`` pictures."""
    out = []
    for first in range(0, len(seeds), size):
        some = tuple(seeds[first : first + size])
        step = size // len(some)
        out += [Batch(tuple(items[i : i + step]), some) for i in range(0, len(items), step)]
    return out


def draw_missing(
    load: Callable[[], tuple[MentorForConditionalGeneration, MentorProcessor]],
    items: Sequence[Item],
    seeds: Sequence[int],
    folder: PictureFolder,
    *,
    sampling: Sampling,
    batch: int,
    processes: Processes,
    guard: InterruptGuard,
    label: str,
) -> None:
    """Draw this process's share of the pictures that are not there yet; ``load`` is called when there are any.

    Raises:
        Interrupted: between two batches; what is drawn stays.
    """
    absent = set(folder.missing())
    left = [
        part
        for part in processes.share(batches(items, seeds, batch))
        if any((item.id, seed) in absent for item in part.items for seed in part.seeds)
    ]
    if not left:
        return
    model, processor = load()
    folder.folder.mkdir(parents=True, exist_ok=True)
    total = sum(len(part.items) * len(part.seeds) for part in left)
    with ProgressBar(f"{label}: drawing", total, quiet=not processes.first) as bar:
        for part in left:
            images = draw_batch(model, processor, part, sampling)
            keys = [(item.id, seed) for item in part.items for seed in part.seeds]
            for key, image in zip(keys, images, strict=True):
                if key in absent:
                    save_picture(image, folder.path(*key))
            bar.advance(len(images))
            if guard.requested:
                raise Interrupted("stopped between two batches")


def draw_batch(
    model: MentorForConditionalGeneration, processor: MentorProcessor, batch: Batch, sampling: Sampling
) -> list[Image.Image]:
    """The batch's N pictures."""
    import torch

    from mentor_base.generate import generate

    length, device = model.config.image_tokens, model.device
    with torch.no_grad():
        inputs = processor([item.prompt() for item in batch.items])
        on_device = {key: None if value is None else value.to(device) for key, value in inputs.items()}
        prefix = model(mode="encode", **on_device)
        noise_NL = torch.stack([item_uniforms(item.id, seed, length) for item in batch.items for seed in batch.seeds])
        made = generate(model, prefix, len(batch.seeds), sampling, uniforms_NL=noise_NL.to(device))
        return list(model.decode_images(made.tokens_NL))


def item_uniforms(item: str, seed: int, length: int) -> torch.Tensor:
    """Numbers in [0, 1) that decide the draws of one picture, [L] float64: a function of (item id, seed)."""
    import torch

    digest = hashlib.sha256(item.encode()).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return torch.from_numpy(np.random.default_rng([STREAM, seed, *words]).random(length))
