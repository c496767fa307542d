"""PickScore against the numbers of its README's lines (tools/golden/pickscore.py)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from goldens import golden, liked
from mentor_rewards.contract import RewardError
from mentor_rewards.pickscore import PickScore
from mentor_rewards.testing import check_reward, sample_batch
from safetensors.torch import load_file

pickscore, toys = golden("pickscore"), golden("toys")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pickscore")
    pickscore.write_checkpoint(folder)
    return folder


def test_scores_are_upstreams(folder: Path) -> None:
    reward = PickScore(folder, processor=None)
    reward.load("cpu", "float32")
    pictures = [toys.picture(size) for size in toys.SIZES]
    found = reward.score(replace(sample_batch(count=len(pictures)), images=pictures, prompts=toys.PROMPTS))
    assert found.scores == pytest.approx(pickscore.SCORES, abs=1e-5 * 100)  # cosines to 1e-5
    assert found.details["truncated"] == [False, False, True, False, False]
    scale = math.exp(float(load_file(folder / "model.safetensors")["logit_scale"]))
    assert reward.spec.range == pytest.approx((-scale, scale))
    assert list(reward.spec.weights) == ["model.safetensors"]
    half = PickScore(folder, processor=None)
    half.load("cpu", "bfloat16")
    assert half.spec.range == reward.spec.range


def test_older_checkpoints_with_a_bin_and_position_ids(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(folder / "model.safetensors")
    positions = torch.arange(pickscore.LENGTH)[None]
    torch.save({**state, "text_model.embeddings.position_ids": positions}, tmp_path / "pytorch_model.bin")
    new, old = (PickScore(place, processor=folder) for place in (folder, tmp_path))
    scores = []
    for reward in (new, old):
        reward.load("cpu", "float32")
        scores.append(reward.score(sample_batch(count=3)).scores)
    assert scores[0] == scores[1]
    assert list(old.spec.weights) == ["pytorch_model.bin"]


def test_defaults_are_the_published_weights() -> None:
    reward = PickScore()
    assert reward.spec.licence.startswith("MIT")
    with pytest.raises(RewardError, match=r"laion/CLIP-ViT-H-14.*|yuvalkirstain/PickScore_v1.*hf download"):
        reward.load("cpu", "float32")


def test_contract(folder: Path) -> None:
    def build() -> PickScore:
        return PickScore(folder, processor=None)

    check_reward(build, liked(build, sample_batch(count=4)))
