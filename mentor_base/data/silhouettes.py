"""How far two drawings of a subject agree: the overlap of their silhouettes.

Vendors draw a subject in their own pose as often as not: given the part of a drawing that is already there, another
vendor's drawing says little about the next cell. A policy trained on such pairs has no reason to follow its reference.

Shapes: N drawings, S side of the silhouettes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIDE = 16
COVERED = 100  # mean alpha, 0..255, from which on a cell belongs to the drawing


def silhouettes(alphas: Sequence[np.ndarray]) -> np.ndarray:
    """Filled outlines, bool [N, S, S], of alpha channels uint8 [k * S, k * S]: all that the border cannot reach."""
    cell = alphas[0].shape[0] // SIDE
    covered_NSS = np.stack([alpha.reshape(SIDE, cell, SIDE, cell).mean((1, 3)) >= COVERED for alpha in alphas])
    free = np.pad(~covered_NSS, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    outside = np.zeros_like(free)
    outside[:, [0, -1]] = outside[:, :, [0, -1]] = True
    while True:
        reached = outside.copy()
        reached[:, 1:] |= outside[:, :-1]
        reached[:, :-1] |= outside[:, 1:]
        reached[:, :, 1:] |= outside[:, :, :-1]
        reached[:, :, :-1] |= outside[:, :, 1:]
        reached &= free
        if (reached == outside).all():
            return ~outside[:, 1:-1, 1:-1]
        outside = reached


def overlap(first_SS: np.ndarray, second_SS: np.ndarray) -> float:
    """Intersection over union, in [0, 1]; 1 for two empty silhouettes."""
    union = np.count_nonzero(first_SS | second_SS)
    return np.count_nonzero(first_SS & second_SS) / union if union else 1.0
