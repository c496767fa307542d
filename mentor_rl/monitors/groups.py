"""Statistics of one rollout's groups: rewards, groups that teach nothing, diversity of tokens and of pictures.

Shapes: N samples, G group size, L image tokens, R trained rewards, D numbers of a thumbnail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from mentor_rewards.aggregate import weighted_sum
from mentor_rewards.composite import CompositeScores, summary
from PIL import Image

if TYPE_CHECKING:
    import torch

FLAT = 1e-6  # spread below which a group's scores count as equal
THUMBNAIL = 16  # side, pixels: sees place, form and colour, but no noise of a decoder


def token_diversity(tokens_NL: torch.Tensor, group_ids_N: Sequence[int]) -> float:
    """Share of positions at which two pictures of one prompt have different tokens, over all pairs in a group.

    0: the policy draws one and the same picture; a collapse shows here long before it shows in rewards.
    NaN only where no group has two pictures.
    """
    shares = []
    for rows in _groups(group_ids_N):
        group_GL = tokens_NL[rows]
        size = len(group_GL)
        if size > 1:
            equal = (group_GL[:, None] == group_GL[None, :]).float().mean(-1).sum().item() - size
            shares.append(1.0 - equal / (size * (size - 1)))
    return float(np.mean(shares)) if shares else math.nan


def thumbnails(images: Sequence[Image.Image]) -> np.ndarray:
    """Pictures as 16x16 RGB means in [0, 1], [N, D] float32."""
    side = (THUMBNAIL, THUMBNAIL)
    small = [image.convert("RGB").resize(side, Image.Resampling.BOX, reducing_gap=2.0) for image in images]
    return np.stack([np.asarray(image, dtype=np.float32).ravel() for image in small]) / 255


def picture_diversity(thumbnails_ND: np.ndarray, group_ids_N: Sequence[int]) -> float:
    """Root mean square distance of two pictures of one prompt in [0, 1], mean over all pairs in a group.

    Tokens that differ may decode to the same picture: this sees the picture. NaN as in ``token_diversity``.
    """
    distances = []
    for rows in _groups(group_ids_N):
        group_GD = thumbnails_ND[rows].astype(np.float64)
        size = len(group_GD)
        if size > 1:
            squared_GG = ((group_GD[:, None] - group_GD[None, :]) ** 2).mean(-1)
            distances.append(np.sqrt(squared_GG).sum() / (size * (size - 1)))
    return float(np.mean(distances)) if distances else math.nan


def flat_groups(values_NR: np.ndarray, group_ids_N: Sequence[int]) -> float:
    """Share of groups in which no trained reward tells one picture from another: they teach nothing."""
    flat = []
    for rows in _groups(group_ids_N):
        spread = [np.ptp(column[~np.isnan(column)]) for column in values_NR[rows].T if (~np.isnan(column)).sum() > 1]
        flat.append(max(spread, default=0.0) <= FLAT)
    return float(np.mean(flat))


def reward_metrics(scores: CompositeScores, weights_R: np.ndarray, group_ids_N: Sequence[int]) -> dict[str, float]:
    """``reward`` (weighted sum of the scaled trained rewards), and of each reward the fields of RewardStats."""
    total_N = weighted_sum(scores.matrix(), weights_R)
    metrics = {"reward": float(np.nanmean(total_N)) if np.isfinite(total_N).any() else math.nan}
    for name, stats in summary(scores, group_ids_N).items():
        metrics |= {f"rewards/{name}/{field}": value for field, value in vars(stats).items()}
    return metrics


def _groups(group_ids_N: Sequence[int]) -> Iterator[np.ndarray]:
    ids_N = np.asarray(group_ids_N)
    for uid in np.unique(ids_N):
        yield np.flatnonzero(ids_N == uid)
