"""DINO against timm and torchvision (tools/golden/dino.py), DINOv2 against transformers' own model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from goldens import golden
from mentor_rewards.contract import RewardError
from mentor_rewards.dino import Dino, DinoV2
from mentor_rewards.testing import check_reward, sample_batch

dino, toys = golden("dino"), golden("toys")
GEOMETRY = {"resize": dino.RESIZE, "crop": dino.SIDE}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in facebookresearch/dino's layout."""
    path = tmp_path_factory.mktemp("dino") / "dino_pretrain.pth"
    torch.save(toys.state(dino.shapes()), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two models as transformers saves them."""
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "dino": ViTModel(ViTConfig(**sizes, intermediate_size=32, image_size=32), add_pooling_layer=False),
        "dinov2": Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2, image_size=48)),  # trained larger than used, as it is
    }
    out = {name: tmp_path_factory.mktemp(name) for name in models}
    for name, model in models.items():
        model.save_pretrained(out[name])
    return out


def test_features_are_upstreams(published: Path) -> None:
    reward = Dino(published, **GEOMETRY)
    reward.load("cpu", "float32")
    found = reward._embed([toys.picture(size) for size in toys.SIZES])
    assert np.allclose(found[:, : dino.KEPT], dino.FEATURES, atol=1e-5)
    assert list(reward.spec.weights) == ["dino_pretrain.pth"]


def test_preprocessing_is_upstreams() -> None:
    for pixels, numbers in zip(Dino().preprocessing([toys.picture(s) for s in toys.SIZES]), dino.PIXELS, strict=True):
        assert toys.probes(pixels) == pytest.approx(numbers, abs=1e-5)


def test_dinov2_is_transformers_own(folders: dict[str, Path]) -> None:
    from transformers import Dinov2Model

    batch = sample_batch(count=3)
    reward = DinoV2(folders["dinov2"], **GEOMETRY)
    reward.load("cpu", "float32")
    references = [pictures[0] for pictures in batch.references]
    with torch.no_grad():
        pixels = reward.preprocessing([*batch.images, *references])
        features = Dinov2Model.from_pretrained(folders["dinov2"]).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    expected = torch.nn.functional.cosine_similarity(features[:3], features[3:])
    assert reward.score(batch).scores == pytest.approx(expected.tolist(), abs=1e-5)


def test_dinov2_prepares_pictures_as_transformers() -> None:
    from transformers import BitImageProcessorPil

    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size=224,
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    pictures = [toys.picture(size) for size in toys.SIZES]
    expected = np.stack([np.asarray(processor(images=p)["pixel_values"][0]) for p in pictures])
    assert np.allclose(DinoV2().preprocessing(pictures).numpy(), expected, atol=1e-5)


def test_misfits_are_told(published: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="expected model_type 'vit', found 'dinov2'"):
        Dino(folders["dinov2"]).load("cpu", "float32")
    with pytest.raises(RewardError, match="expected a folder of a transformers model, found a file"):
        DinoV2(published).load("cpu", "float32")
    state = toys.state(dino.shapes())
    torch.save({**state, "head.weight": torch.zeros(1)}, tmp_path / "head.pth")
    with pytest.raises(RewardError, match=r"head\.pth: unexpected keys: head\.weight"):
        Dino(tmp_path / "head.pth").load("cpu", "float32")
    with pytest.raises(RewardError, match=r"crop: expected 1 to 200 \(resize\), found 224"):
        Dino(resize=200)


@pytest.mark.parametrize("kind", [Dino, DinoV2])
def test_contract(kind: type[Dino], folders: dict[str, Path]) -> None:
    batch = sample_batch(count=4)
    itself = replace(batch, references=[(image,) for image in batch.images])  # nearest to itself, whatever the weights
    check_reward(lambda: kind(folders[kind.spec.name], **GEOMETRY), itself)
