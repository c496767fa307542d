"""FID and KID: how far the features of drawn pictures are from those of real ones, as two sets.

    FID   Frechet distance of two Gaussians with the sets' means and covariances (arXiv 1706.08500, section 3)
    KID   unbiased squared MMD under the kernel (x . y / C + 1)^3, mean over subsets (arXiv 1801.01401, section 4)

FID has a bias that falls with the number of pictures, so it compares only at equal numbers; KID has none. With fewer
pictures than features the covariance is singular and FID means little: fid_bench.py says so in the result.

The formulas are here and take any features; fid_features.py says whose they are. Only those of the 2015 Inception
network make the FID of publications.

Shapes: N pictures of one set, M of the other, C features, B subsets.
"""

from __future__ import annotations

import math

import numpy as np

SUBSETS, SUBSET_SIZE = 100, 1000
SEED = 20_250_713


def frechet_distance(one_NC: np.ndarray, other_MC: np.ndarray) -> float:
    """FID of two sets of features; 0 for equal sets.

    Raises:
        ValueError: fewer than two pictures in a set, or other numbers of features.
    """
    _check(one_NC, other_MC)
    return gaussian_distance(
        one_NC.mean(0, dtype=np.float64), covariance(one_NC), other_MC.mean(0, dtype=np.float64), covariance(other_MC)
    )


def gaussian_distance(
    mean_C: np.ndarray, covariance_CC: np.ndarray, other_mean_C: np.ndarray, other_covariance_CC: np.ndarray
) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of two Gaussians.

    The root's trace is that of (S^(1/2) S' S^(1/2))^(1/2), which is symmetric: two eigendecompositions, no root of a
    matrix that may be singular.
    """
    values, vectors = np.linalg.eigh(covariance_CC)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ other_covariance_CC @ root)
    shift = float(((mean_C - other_mean_C) ** 2).sum())
    spread = float(np.trace(covariance_CC) + np.trace(other_covariance_CC) - 2 * np.sqrt(inner.clip(min=0)).sum())
    return max(shift + spread, 0.0)  # rounding can leave -1e-12


def covariance(features_NC: np.ndarray) -> np.ndarray:
    """Unbiased, in float64 -> [C, C]."""
    centred = features_NC.astype(np.float64) - features_NC.mean(0, dtype=np.float64)
    return np.asarray(centred.T @ centred / (len(features_NC) - 1))


def kernel_distance(
    one_NC: np.ndarray,
    other_MC: np.ndarray,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> tuple[float, float]:
    """KID and its standard deviation over subsets, as a fraction (publications often print it times 1,000).

    A subset takes ``subset_size`` pictures of each set without replacement, or as many as the smaller set has. Where a
    subset is all of both sets there is one, and no deviation: NaN.

    Raises:
        ValueError: fewer than two pictures in a set, or other numbers of features.
    """
    _check(one_NC, other_MC)
    size = min(subset_size, len(one_NC), len(other_MC))
    whole = size == len(one_NC) == len(other_MC)  # every subset is everything
    rng = np.random.default_rng(seed)
    values_B = np.array(
        [
            squared_mmd(
                one_NC[rng.choice(len(one_NC), size, replace=False)],
                other_MC[rng.choice(len(other_MC), size, replace=False)],
            )
            for _ in range(1 if whole else subsets)
        ]
    )
    return float(values_B.mean()), math.nan if whole else float(values_B.std())


def squared_mmd(one_NC: np.ndarray, other_MC: np.ndarray) -> float:
    """Unbiased, under the cubic kernel; it can fall below 0."""
    one, other = one_NC.astype(np.float64), other_MC.astype(np.float64)
    n, m = len(one), len(other)
    within = [kernel(each, each) for each in (one, other)]
    first, second = ((k.sum() - np.trace(k)) / (size * (size - 1)) for k, size in zip(within, (n, m), strict=True))
    return float(first + second - 2 * kernel(one, other).mean())


def kernel(one_NC: np.ndarray, other_MC: np.ndarray) -> np.ndarray:
    """(x . y / C + 1)^3 -> [N, M]."""
    return np.asarray((one_NC @ other_MC.T / one_NC.shape[1] + 1) ** 3)


def _check(one_NC: np.ndarray, other_MC: np.ndarray) -> None:
    if one_NC.ndim != 2 or other_MC.ndim != 2 or one_NC.shape[1] != other_MC.shape[1]:
        raise ValueError(f"expected two tables of equally many features, found {one_NC.shape} and {other_MC.shape}")
    if min(len(one_NC), len(other_MC)) < 2:
        raise ValueError(f"expected at least two pictures in each set, found {len(one_NC)} and {len(other_MC)}")
