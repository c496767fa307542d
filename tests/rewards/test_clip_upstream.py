"""``backend: upstream`` of the CLIP rewards: open_clip by the signatures that it has, and what it needs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from mentor_rewards.clip_image import ClipImage
from mentor_rewards.clip_text import ClipText
from mentor_rewards.contract import RewardError
from mentor_rewards.testing import sample_batch
from PIL import Image

LETTERS = 8


class FakeModel(torch.nn.Module):
    """Embeds a picture as its mean colour, a text as the counts of its first letters."""

    visual = SimpleNamespace(output_dim=3)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean(dim=(2, 3))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([(tokens % 3 == k).sum(dim=1).float() for k in range(3)], dim=1)


class FakeTokenizer:
    context_length = LETTERS

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def __call__(self, texts: list[str]) -> torch.Tensor:
        cut = [self.encode(text)[: LETTERS - 2] for text in texts]
        return torch.tensor([[*ids, *[0] * (LETTERS - len(ids))] for ids in cut])


def tensor_of(image: Image.Image) -> torch.Tensor:
    return torch.tensor(list(image.resize((2, 2)).getdata())).float().T.reshape(3, 2, 2) / 255


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    package = ModuleType("open_clip")

    def create(name: str, device: str, precision: str) -> tuple[FakeModel, Any]:
        found.append((name, device, precision))
        return FakeModel(), tensor_of

    package.create_model_from_pretrained = create  # type: ignore[attr-defined]
    package.get_tokenizer = lambda name: FakeTokenizer()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "open_clip", package)
    return found


def test_a_folder_and_the_published_weights(calls: list[Any], tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"weights")
    reward = ClipText(tmp_path, backend="upstream")
    reward.load("cpu", "float32")
    assert list(reward.spec.weights) == ["open_clip_model.safetensors"]
    published = ClipImage(backend="upstream")
    published.load("cpu", "bfloat16")
    assert calls == [
        (f"local-dir:{tmp_path.resolve()}", "cpu", "fp32"),
        ("hf-hub:timm/vit_base_patch32_clip_224.openai", "cpu", "pure_bf16"),
    ]


def test_scores_are_cosines_of_its_embeddings(calls: list[Any]) -> None:
    batch = sample_batch(count=4)
    reward = ClipText(backend="upstream")
    reward.load("cpu", "float32")
    found = reward.score(batch)
    pictures = torch.stack([tensor_of(image.convert("RGB")) for image in batch.images]).mean(dim=(2, 3))
    texts = FakeModel().encode_text(FakeTokenizer()(list(batch.prompts)))
    assert found.scores == pytest.approx(torch.cosine_similarity(pictures, texts).tolist(), abs=1e-6)
    assert found.details["truncated"] == [len(prompt) > LETTERS - 2 for prompt in batch.prompts]


def test_what_it_needs(calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RewardError, match=r"expected a folder of open_clip, found no open_clip_config\.json"):
        ClipText(tmp_path, backend="upstream").load("cpu", "float32")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(RewardError, match=r"pip install 'mentor-rl\[open-clip\]'"):
        ClipText(tmp_path, backend="upstream").load("cpu", "float32")
