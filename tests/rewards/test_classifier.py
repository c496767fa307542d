"""ConvClassifier: round trip on disk, strict loading, learns, independent of neighbours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mentor_rewards.classifier import ClassifierConfig, ConvClassifier
from mentor_rewards.contract import RewardError
from mentor_rewards.testing import sample_batch
from safetensors.torch import load_file, save_file


def test_round_trip(classifier_folder: Path, tmp_path: Path) -> None:
    model = ConvClassifier.load(classifier_folder)
    images = sample_batch().images
    model.save(tmp_path)
    again = ConvClassifier.load(tmp_path)
    assert again.config == model.config
    assert torch.equal(again.probabilities(images), model.probabilities(images))
    assert model.probabilities(images).sum(1) == pytest.approx([1.0] * 6, abs=1e-5)
    assert model.embeddings(images).norm(dim=1) == pytest.approx([1.0] * 6, abs=1e-5)
    model.save(tmp_path, dtype="float16")
    assert torch.allclose(ConvClassifier.load(tmp_path).probabilities(images), model.probabilities(images), atol=1e-2)


def test_default_size_is_small() -> None:
    model = ConvClassifier(ClassifierConfig(labels=tuple(f"label {n}" for n in range(9))))
    assert 3e5 < sum(p.numel() for p in model.parameters()) < 8e5


def test_tells_two_grounds_apart_after_a_few_steps() -> None:
    torch.manual_seed(0)
    model = ConvClassifier(ClassifierConfig(labels=("warm", "cold"), width=8, image_size=32))
    images = [image for seed in range(4) for image in sample_batch(seed=seed).images[:2]]  # red, blue grounds
    labels = torch.tensor([0, 1] * 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pixels = model.pixels(images)
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.eval().probabilities(sample_batch(seed=9).images[:2]).argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), r"missing tensor 'head\.bias'"),
        (lambda t: t.update(hed=torch.zeros(1)), "unexpected tensor 'hed'"),
        (lambda t: t.update({"head.bias": torch.zeros(4)}), r"'head\.bias': expected shape \[3\], found \[4\]"),
    ],
)
def test_strict_tensors(
    classifier_folder: Path, tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    folder = shutil.copytree(classifier_folder, tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(RewardError, match=message):
        ConvClassifier.load(folder)


def test_a_file_cut_short_is_named(classifier_folder: Path, tmp_path: Path) -> None:
    weights = shutil.copytree(classifier_folder, tmp_path / "c") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(RewardError, match=r"model\.safetensors: expected a whole .* file, found a damaged one"):
        ConvClassifier.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(widht=8), "unknown key 'widht'; did you mean 'width'"),
        (lambda c: c.pop("labels"), "missing key 'labels'"),
        (lambda c: c.update(kind="clip"), "expected kind 'classifier'"),
        (lambda c: c.update(labels=["a", "a", "b"]), "expected distinct labels"),
    ],
)
def test_strict_config(classifier_folder: Path, tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    folder = shutil.copytree(classifier_folder, tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RewardError, match=message):
        ConvClassifier.load(folder)
