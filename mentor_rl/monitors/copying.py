"""Copy-paste: pictures that are more like their reference than following the prompt allows.

A reward for likeness (CLIP-I, DINO) is served best by handing the reference back. How like the reference a picture may
be depends on the task: a subject in another style little, a reconstruction entirely. The data says how much: its own
answers obey the prompt. So, per task,

    similarity  Pearson correlation of two pictures' thumbnails (16x16 RGB); with several references, the largest
    threshold   95 % quantile of the similarity of 64 true answers of the training data to their references
    copy        a picture whose similarity lies above the threshold of its task

5 % of honest answers count as copies by construction; a share well above that, and rising, says that the policy copies.
It is the training-time sign of what MENTOR's CP/PF ratio (section 4) says after training: concept preservation bought
with prompt following. A copy that is shifted, mirrored or turned has a low correlation and is not seen.

On 200 subject-driven prompts of the emoji world (reference and target in two styles) all references that were passed
through the VQ tokenizer count as copies, and 5.5 % of the targets that were.

Everything here is a function of the data, the tasks and the pictures: there is no state to resume.

Shapes: N pictures, D numbers of a thumbnail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from mentor_base.data.schema import Example, Prompt
from mentor_rl.monitors.groups import thumbnails

ANSWERS = 64  # true answers per task that a threshold is taken from
QUANTILE = 0.95
HONEST = 1.0 - QUANTILE  # copy share of the data's own answers


def correlation(a_D: np.ndarray, b_D: np.ndarray) -> float:
    """Pearson correlation in [-1, 1]; of a picture of one colour with any other picture 0, with itself 1."""
    if np.array_equal(a_D, b_D):
        return 1.0
    a_D, b_D = (x.astype(np.float64) - float(x.mean(dtype=np.float64)) for x in (a_D, b_D))
    norm = float(np.linalg.norm(a_D) * np.linalg.norm(b_D))
    return float(np.clip(a_D @ b_D / norm, -1.0, 1.0)) if norm > 1e-9 else 0.0


def copy_thresholds(examples: Iterable[Example]) -> dict[str, float]:
    """The similarity that prompt following allows, by task; tasks without references have none.

    Args:
        examples: true answers, ``ANSWERS`` or more of each task.
    """
    by_task: dict[str, list[Example]] = {}
    for example in examples:
        if example.images:
            by_task.setdefault(example.task, []).append(example)
    return {task: float(np.quantile(_own_similarity(mine), QUANTILE)) for task, mine in by_task.items()}


def _own_similarity(examples: Sequence[Example]) -> np.ndarray:
    targets_ND = thumbnails([example.target for example in examples])
    return reference_similarity(targets_ND, [example.images for example in examples])


def reference_similarity(thumbnails_ND: np.ndarray, references: Sequence[tuple[Image.Image, ...]]) -> np.ndarray:
    """Similarity [N] of pictures to the nearest of their references; NaN for a picture without any."""
    distinct = {id(image): image for images in references for image in images}  # a group shares its references
    if not distinct:
        return np.full(len(thumbnails_ND), math.nan)
    small = dict(zip(distinct, thumbnails(list(distinct.values())), strict=True))
    return np.array(
        [
            max((correlation(own_D, small[id(image)]) for image in images), default=math.nan)
            for own_D, images in zip(thumbnails_ND, references, strict=True)
        ]
    )


def copies(
    thumbnails_ND: np.ndarray, prompts: Sequence[Prompt], thresholds: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity [N] to the reference, and 1 for a copy, 0 for none [N]; NaN where the task has no threshold."""
    similarity_N = reference_similarity(thumbnails_ND, [prompt.images for prompt in prompts])
    allowed_N = np.array([thresholds.get(str(prompt.meta.get("task")), math.nan) for prompt in prompts])
    known_N = ~np.isnan(similarity_N) & ~np.isnan(allowed_N)
    return np.where(known_N, similarity_N, math.nan), np.where(known_N, similarity_N > allowed_N, math.nan)


def copy_metrics(similarity_N: np.ndarray, copied_N: np.ndarray) -> dict[str, float]:
    """``copies/similarity`` and ``copies/share`` over the pictures that could be compared; empty where none could."""
    known_N = ~np.isnan(copied_N)
    if not known_N.any():
        return {}
    return {
        "copies/similarity": float(similarity_N[known_N].mean()),
        "copies/share": float(copied_N[known_N].mean()),
    }
