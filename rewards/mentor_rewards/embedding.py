"""Embeddings that rewards share within one scoring call, and cosines between them.

A group of G pictures has one prompt and one reference, and two rewards may use one encoder: each distinct picture or
text is embedded once per call. The results lie in ``RewardBatch.shared`` and go with the batch, so a score depends
on nothing but its batch: a resumed run gets the same bits as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from mentor_rewards.contract import RewardBatch, RewardOutput
from mentor_rewards.pixels import picture_digest

Item = TypeVar("Item", Image.Image, str)


def embed_once(
    shared: dict[Hashable, Any],
    encoder: Hashable,
    items: Sequence[Item],
    embed: Callable[[Sequence[Item]], np.ndarray],
) -> np.ndarray:
    """Embeddings of all items [N, C], each distinct one computed once per ``shared``.

    Args:
        shared: ``RewardBatch.shared``.
        encoder: whose embeddings they are; must differ between encoders, devices, dtypes and preprocessings.
        embed: M distinct items -> [M, C].
    """
    keys = [(encoder, item if isinstance(item, str) else picture_digest(item)) for item in items]
    new = {key: item for key, item in zip(keys, items, strict=True) if key not in shared}
    if new:
        shared.update(zip(new, embed(list(new.values())), strict=True))
    return np.stack([shared[key] for key in keys])


def cosine_to_references(
    batch: RewardBatch, encoder: Hashable, embed: Callable[[Sequence[Image.Image]], np.ndarray]
) -> RewardOutput:
    """Cosine of each picture with its references, mean over these; None with a reason where there is none.

    Args:
        encoder, embed: as in ``embed_once``; the embeddings have unit length.
    """
    if not len(batch):
        return RewardOutput([])
    flat = [*batch.images, *(reference for references in batch.references for reference in references)]
    embedded = embed_once(batch.shared, encoder, flat, embed)
    scores: list[float | None] = []
    position = len(batch)
    for row, references in enumerate(batch.references):
        own = embedded[position : position + len(references)]
        position += len(references)
        scores.append(float((own @ embedded[row]).mean()) if references else None)
    return RewardOutput(scores, [None if score is not None else "no reference" for score in scores])
