"""ImageReward: our network on an upstream-shaped checkpoint gives upstream's numbers; what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import golden as golden_script
from goldens import liked
from mentor_rewards.blip_scorer import BlipScorer
from mentor_rewards.clip_preprocessing import Preprocessing
from mentor_rewards.contract import RewardEntry, RewardError
from mentor_rewards.image_reward import ImageReward
from mentor_rewards.registry import build_reward
from mentor_rewards.testing import check_reward, sample_batch

Tensors = dict[str, torch.Tensor]


golden: Any = golden_script("image_reward")


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return {name: torch.from_numpy(golden.tensor(name, shape)) for name, shape in golden.shapes().items()}


@pytest.fixture(scope="module")
def folder(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_reward")
    torch.save(tensors, folder / "ImageReward.pt")
    golden.write_tokenizer(folder)
    return folder


def test_scores_are_upstreams(folder: Path) -> None:
    pictures = [golden.picture(size) for size in golden.SIZES]
    entry = RewardEntry(options={"checkpoint": folder, "tokenizer": folder})
    reward = build_reward("image_reward", entry)
    reward.load("cpu", "float32")
    batch = replace(sample_batch(count=len(pictures)), images=pictures, prompts=golden.PROMPTS)
    found = reward.score(batch)  # type: ignore[union-attr]
    assert found.scores == pytest.approx(golden.SCORES, abs=1e-5)
    assert found.details == {"truncated": [False, False, False, True]}
    assert list(reward.spec.weights) == ["ImageReward.pt"]
    swapped = reward.score(replace(batch, prompts=golden.PROMPTS[::-1]))  # type: ignore[union-attr]
    assert min(abs(a - b) for a, b in zip(swapped.scores, golden.SCORES, strict=True)) > 1e-3


def test_nothing_after_the_35th_token_counts(folder: Path) -> None:
    scorer = BlipScorer(folder / "ImageReward.pt", folder, "cpu", "float32")
    picture = golden.picture((64, 64))
    words = ["a", "red", "disc"] * 11  # 33 and the two marks: exactly as many as fit
    prompts = [" ".join(words), " ".join([*words, "blue"]), " ".join([*words, "green", "dog"]), "blue"]
    fits, longer, longest, other = scorer.scores([picture] * 4, prompts)
    assert scorer.too_long(prompts) == [False, True, True, False]
    assert fits == pytest.approx(longer, abs=1e-6)
    assert fits == pytest.approx(longest, abs=1e-6)
    assert abs(fits - other) > 1e-3


@pytest.mark.parametrize("size", golden.SIZES)
def test_preprocessing_is_upstreams(size: tuple[int, int]) -> None:
    pixels = Preprocessing(odd_margin="round")([golden.picture(size)])[0]
    assert golden.probed(pixels) == pytest.approx(golden.PIXELS[size], abs=2e-6)


def test_half_precision_keeps_a_float32_head(folder: Path) -> None:
    scorer = BlipScorer(folder / "ImageReward.pt", folder, "cpu", "bfloat16")
    scores = scorer.scores([golden.picture(size) for size in golden.SIZES], golden.PROMPTS)
    assert scores == pytest.approx(golden.SCORES, abs=0.1)
    assert [score for score in scores if score == torch.tensor(score).bfloat16().item()] == []


def test_contract(folder: Path) -> None:
    batch = liked(lambda: ImageReward(folder, folder), sample_batch(count=3))
    check_reward(lambda: ImageReward(folder, folder), batch)


def without(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("blip.text_encoder.encoder.layer.1.crossattention.self.key.bias"),
            "missing keys: blip.*self.key.bias",
        ),
        (lambda t: t | {"blip.visual_encoder.extra": torch.zeros(1)}, "unexpected keys: blip.visual_encoder.extra"),
        (without("mlp.layers.7.weight"), "missing keys: mlp.layers.7.weight"),
        (lambda t: t | {"mlp.layers.7.weight": torch.zeros(2, 16)}, r"mlp.layers.7: expected .*\(1, 16\).*\(2, 16\)"),
        (
            lambda t: t | {"blip.visual_encoder.blocks.1.norm1.weight": torch.zeros(7)},
            r"layer_norm1.weight: expected shape \(128,\), found \(7,\)",
        ),
        (lambda t: {}, "missing keys"),
        (lambda t: t | {"step": 3}, "expected tensors by name"),
        (lambda t: t | {"code": print}, "expected tensors in safetensors or torch's weights_only format"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(
    change: Callable[[Tensors], Any], message: str, tensors: Tensors, folder: Path, tmp_path: Path
) -> None:
    torch.save(change(tensors), tmp_path / "ImageReward.pt")
    with pytest.raises(RewardError, match=message) as caught:
        ImageReward(tmp_path, folder).load("cpu", "float32")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    golden.write_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join([*golden.VOCABULARY, "cat"]) + "\n")
    with pytest.raises(RewardError, match=f"tokenizer of {golden.ENTRIES} entries .* found {golden.ENTRIES + 1}"):
        ImageReward(folder, tmp_path).load("cpu", "float32")


def test_missing_weights_and_package_are_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RewardError, match=r"ImageReward\.pt: no such file of weights"):
        ImageReward(tmp_path, folder).load("cpu", "float32")
    with pytest.raises(RewardError, match=r"pip install 'mentor-rl\[image-reward\]'"):
        ImageReward(folder, folder, backend="upstream").load("cpu", "float32")
    with pytest.raises(RewardError, match=r"expected sha256 0+, found"):
        ImageReward(folder, folder, sha256="0" * 64).load("cpu", "float32")
