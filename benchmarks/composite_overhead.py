"""What a composite costs beside its rewards: seconds of ``Composite.score`` over those of the bare scorers.

    python benchmarks/composite_overhead.py [--rounds 15] [--pictures 64] [--side 256]

A rollout of 64 pictures of 256 pixels in groups of 8, two tasks, and three rewards that cost a few milliseconds a
picture, as the cheap ones of the package do: the PNG-like entropy of the pixels, the sharpness of their edges, and the
colour distance to the reference (which only the subject-driven half has). Both sides score the same samples on one
thread; the composite adds the sorting out of samples, micro-batches of 16, checks of every answer, statistics and the
advantages. Rounds alternate between the two, in one process; the figure is the ratio of the medians, and the median
and the quartiles of the ratio of each round's pair. It is to stay below 1.05.
"""

from __future__ import annotations

import argparse
import statistics
import time
import zlib
from collections.abc import Callable

import numpy as np
from mentor_rewards.aggregate import advantages
from mentor_rewards.composite import Composite, summary
from mentor_rewards.contract import Reward, RewardBatch, RewardEntry, RewardOutput, RewardSpec
from PIL import Image, ImageFilter

GROUP = 8


class Entropy(Reward):
    """Bytes that deflate leaves of the pixels, as a share."""

    spec = RewardSpec("entropy", "1", range=(0.0, 2.0))

    def score(self, batch: RewardBatch) -> RewardOutput:
        return RewardOutput([len(zlib.compress(image.tobytes(), 1)) / len(image.tobytes()) for image in batch.images])


class Sharpness(Reward):
    """Spread of an edge filter's answer."""

    spec = RewardSpec("sharpness", "1")

    def score(self, batch: RewardBatch) -> RewardOutput:
        edges = [
            image.convert("L").filter(ImageFilter.FIND_EDGES).filter(ImageFilter.BoxBlur(3)) for image in batch.images
        ]
        return RewardOutput([float(np.asarray(picture, dtype=np.float32).std()) for picture in edges])


class ColourDistance(Reward):
    """Distance of the colour histograms of picture and first reference."""

    spec = RewardSpec("colour_distance", "1", needs=frozenset({"reference"}), higher_is_better=False)

    def score(self, batch: RewardBatch) -> RewardOutput:
        pairs = zip(batch.images, (references[0] for references in batch.references), strict=True)
        return RewardOutput([float(np.abs(_histogram(a) - _histogram(b)).sum()) for a, b in pairs])


def _histogram(image: Image.Image) -> np.ndarray:
    bins = (np.asarray(image, dtype=np.int64) // 32) @ np.array([64, 8, 1])
    return np.bincount(bins.ravel(), minlength=512) / bins.size


def rollout(pictures: int, side: int) -> RewardBatch:
    """Smooth random pictures; the second half is subject-driven and has references."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (pictures + 1, 24, 24, 3), dtype=np.uint8)
    drawn = [Image.fromarray(array).resize((side, side), Image.Resampling.BICUBIC) for array in small]
    subject = [row >= pictures // 2 for row in range(pictures)]
    return RewardBatch(
        images=drawn[:-1],
        prompts=["a fox in line art style"] * pictures,
        references=[(drawn[-1],) if with_reference else () for with_reference in subject],
        subjects=["fox"] * pictures,
        group_ids=[row // GROUP for row in range(pictures)],
        metadata=[{"task": "subject" if with_reference else "t2i"} for with_reference in subject],
    )


def compare(composite: Composite, batch: RewardBatch, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the bare scorers and of the composite, round by round, in turns."""
    with_reference = batch.select([row for row in range(len(batch)) if batch.references[row]])

    def bare() -> None:
        for name, reward in composite.rewards.items():
            reward.score(with_reference if name == "colour_distance" else batch)

    def whole() -> None:
        scores = composite.score(batch)
        summary(scores, batch.group_ids)
        advantages(scores.matrix(), composite.weights, batch.group_ids)

    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):  # the first one warms up
        order: list[tuple[int, Callable[[], None]]] = [(0, bare), (1, whole)]
        for side, call in order if turn % 2 else reversed(order):
            start = time.thread_time()
            call()
            seconds[side].append(time.thread_time() - start)
    return seconds[0][1:], seconds[1][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--side", type=int, default=256)
    options = parser.parse_args()
    entries = {
        "entropy": RewardEntry(use="__main__:Entropy", batch=16),
        "sharpness": RewardEntry(use="__main__:Sharpness", batch=16),
        "colour_distance": RewardEntry(use="__main__:ColourDistance", batch=16, scale=-1.0, tasks=("subject",)),
    }
    with Composite(entries) as composite:
        bare, whole = compare(composite, rollout(options.pictures, options.side), options.rounds)
    ratios = [b / a for a, b in zip(bare, whole, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    per_picture = 1e3 * statistics.median(bare) / options.pictures
    print(f"bare scorers   {statistics.median(bare):.4f} s CPU a rollout, {per_picture:.2f} ms a picture")
    print(f"composite      {statistics.median(whole):.4f} s CPU a rollout")
    print(
        f"ratio          {statistics.median(whole) / statistics.median(bare):.4f} of the medians; by round "
        f"{middle:.4f} [{low:.4f}, {high:.4f}]"
    )


if __name__ == "__main__":
    main()
