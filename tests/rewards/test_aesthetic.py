"""The aesthetic head: the published file's known answers, upstream's layers (tools/golden/aesthetic.py), misfits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import golden
from mentor_rewards.aesthetic import Aesthetic, affine_map
from mentor_rewards.clip_towers import ClipTower
from mentor_rewards.contract import RewardError
from mentor_rewards.pretrained import read_tensors
from mentor_rewards.testing import check_reward, sample_batch
from mentor_rewards.weights import checksum

aesthetic, toys = golden("aesthetic"), golden("toys")
PUBLISHED = Path(__file__).parents[1] / "fixtures" / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth"
SHAPES = {f"layers.{place}": shape for place, shape in {0: (8, 12), 2: (6, 8), 4: (4, 6), 6: (3, 4), 7: (1, 3)}.items()}


def write_head(path: Path, **changes: torch.Tensor) -> Path:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (leaving, entering) in SHAPES.items():
        shapes |= {f"{name}.weight": (leaving, entering), f"{name}.bias": (leaving,)}
    torch.save({**toys.state(shapes), **changes}, path)
    return path


def test_published_head_has_its_known_answers() -> None:
    weight, bias = affine_map(read_tensors(PUBLISHED), "head")
    assert bias == pytest.approx(5.236646, abs=1e-6)
    assert float(weight.sum() / np.sqrt(768)) + bias == pytest.approx(4.883285, abs=1e-6)
    assert weight[0] + bias == pytest.approx(4.545052, abs=1e-6)
    low, high = Aesthetic.spec.range
    reach = np.linalg.norm(weight)
    assert low is not None
    assert high is not None
    assert low <= bias - reach < low + 0.01
    assert high - 0.01 < bias + reach <= high
    assert checksum(PUBLISHED) == Aesthetic().sha256


def test_collapsed_head_is_upstreams() -> None:
    weight, bias = affine_map(toys.state(aesthetic.shapes()), "head")
    assert aesthetic.inputs() @ weight + bias == pytest.approx(aesthetic.OUTPUTS, abs=1e-5)


def test_score_is_the_head_of_the_unit_embedding(clip_folder: Path, tmp_path: Path) -> None:
    reward = Aesthetic(write_head(tmp_path / "head.pth"), clip_folder)
    assert reward.spec.range == (None, None)
    reward.load("cpu", "float32")
    batch = sample_batch(count=3)
    layers = torch.load(tmp_path / "head.pth", weights_only=True)
    x = ClipTower.load(clip_folder).image_embeddings(batch.images)
    for name in SHAPES:
        x = x @ layers[f"{name}.weight"].T + layers[f"{name}.bias"]
    assert reward.score(batch).scores == pytest.approx(x[:, 0].tolist(), abs=1e-5)
    low, high = reward.spec.range
    assert low is not None
    assert high is not None
    assert low < float(x.min()) <= float(x.max()) < high
    assert set(reward.spec.weights) == {"head.pth", "model.safetensors"}


def test_misfits_are_told(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"linearMSE\.pth: expected a head for embeddings of 12 channels, found 768"):
        Aesthetic(PUBLISHED, clip_folder).load("cpu", "float32")
    head = write_head(tmp_path / "head.pth", **{"layers.9.bias": torch.zeros(1)})
    with pytest.raises(RewardError, match=r"head\.pth: unexpected keys: layers\.9\.bias"):
        Aesthetic(head, clip_folder).load("cpu", "float32")
    with pytest.raises(RewardError, match=r"head\.pth: expected sha256 00, found"):
        Aesthetic(head, clip_folder, sha256="00").load("cpu", "float32")
    with pytest.raises(RewardError, match=r"camenduru/improved-aesthetic-predictor: sac.*hf download"):
        Aesthetic(checkpoint=clip_folder).load("cpu", "float32")


def test_contract(clip_folder: Path, tmp_path: Path) -> None:
    head = write_head(tmp_path / "head.pth")
    check_reward(lambda: Aesthetic(head, clip_folder), sample_batch(count=4))
