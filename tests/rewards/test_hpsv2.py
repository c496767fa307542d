"""HPSv2 against upstream's numbers (tools/golden/hps.py), strict loading of open_clip's layout, the other backend."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from goldens import golden, liked
from mentor_rewards.clip_open_clip import clip_config
from mentor_rewards.clip_preprocessing import Letterbox
from mentor_rewards.clip_towers import ClipTower
from mentor_rewards.contract import RewardBatch, RewardEntry, RewardError
from mentor_rewards.hpsv2 import HPSv2, HPSv21
from mentor_rewards.registry import build_reward
from mentor_rewards.testing import check_reward, sample_batch
from safetensors.torch import save_file

hps, toys = golden("hps"), golden("toys")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of both versions under their published names, and a tokenizer."""
    folder = tmp_path_factory.mktemp("hps")
    state = toys.state(hps.shapes())
    torch.save({"epoch": 1, "state_dict": state}, folder / HPSv2.file)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, folder / HPSv21.file)
    toys.write_tokenizer(folder)
    return folder


def build(folder: Path, **options: Any) -> HPSv2:
    return HPSv2(checkpoint=folder, tokenizer=folder, side=hps.SIDE, **options)


def golden_batch() -> RewardBatch:
    pictures = [toys.picture(size) for size in toys.SIZES]
    return replace(sample_batch(count=len(pictures)), images=pictures, prompts=toys.PROMPTS)


def test_scores_are_upstreams(folder: Path) -> None:
    for name in ("hpsv2", "hpsv2.1"):
        options = {"checkpoint": str(folder), "tokenizer": str(folder), "side": hps.SIDE}
        reward: Any = build_reward(name, RewardEntry(options=options))
        reward.load("cpu", "float32")
        found = reward.score(golden_batch())
        assert found.scores == pytest.approx(hps.SCORES, abs=1e-5)
        assert found.details["truncated"] == [False, False, True, False, False]
        assert list(reward.spec.weights) == [reward.file]


def test_letterbox_is_upstreams() -> None:
    sizes = [size for size in toys.SIZES if size != (224, 101)]
    pictures = [toys.picture(size) for size in sizes]
    for antialias, expected in ((True, hps.PIXELS), (False, hps.PIXELS_WITHOUT_ANTIALIAS)):
        for pixels, numbers in zip(Letterbox(224, antialias)(pictures), expected, strict=True):
            assert toys.probes(pixels) == pytest.approx(numbers, abs=1e-5)


def test_letterbox_pads_what_upstream_leaves_oblong() -> None:
    letterbox = Letterbox(224)
    wide = letterbox([toys.picture((224, 101))])[0]
    assert wide.shape == (3, 224, 224)
    black = letterbox([toys.picture((224, 101)).point(lambda _: 0)])[0]
    assert torch.equal(wide[:, :61], black[:, :61])
    assert not torch.equal(wide[:, 61], black[:, 61])
    assert letterbox([toys.picture((1000, 20)).resize((1000, 1))]).isfinite().all()


def test_sizes_are_read_off_the_published_towers() -> None:
    vision = {"layers": 32, "width": 1280, "patch_size": 14, "image_size": 224}
    text = {"layers": 24, "width": 1024, "context_length": 77, "vocab_size": 49408}
    shapes = hps.shapes(vision, text, 1024)
    assert len(shapes) == 686
    with torch.device("meta"):
        config = clip_config({name: torch.empty(shape) for name, shape in shapes.items()}, "gelu", "ViT-H-14")
    vision_config, text_config = config.vision_config, config.text_config
    assert (vision_config.num_attention_heads, vision_config.image_size, vision_config.intermediate_size) == (
        16,
        224,
        5120,
    )
    assert (text_config.num_attention_heads, text_config.eos_token_id, config.projection_dim) == (16, 49407, 1024)
    assert (vision_config.num_hidden_layers, text_config.num_hidden_layers) == (32, 24)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: state.pop("visual.ln_pre.bias"), r"missing keys: visual\.ln_pre\.bias"),
        (lambda state: state.pop("transformer.resblocks.0.ln_1.weight"), r"missing keys: transformer\.resblocks\.0"),
        (lambda state: state.update(score=torch.zeros(1)), "unexpected keys: score"),
        (lambda state: state.update({"visual.proj": torch.zeros(64, 24)}), "expected shape .*, found"),
    ],
)
def test_loading_is_strict(folder: Path, tmp_path: Path, change: Callable[[Any], Any], problem: str) -> None:
    state = toys.state(hps.shapes())
    change(state)
    save_file(state, tmp_path / "hps.safetensors")
    with pytest.raises(RewardError, match=rf"hps\.safetensors: .*{problem}"):
        HPSv2(tmp_path / "hps.safetensors", tokenizer=folder, side=hps.SIDE).load("cpu", "float32")


def test_wrong_files_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="expected sha256 0000, found"):
        build(folder, sha256="0000").load("cpu", "float32")
    (tmp_path / "hps.pt").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(RewardError, match=r"hps\.pt: expected tensors in safetensors or torch's"):
        HPSv2(tmp_path / "hps.pt", tokenizer=folder, side=hps.SIDE).load("cpu", "float32")
    with pytest.raises(RewardError, match="the tower looks at 32 pixels a side, the preprocessing makes 224"):
        HPSv2(folder, tokenizer=folder).load("cpu", "float32")


def test_one_copy_of_the_weights_for_all_preprocessings(folder: Path) -> None:
    path = folder / HPSv2.file
    one, two = (
        ClipTower.load(path, tokenizer=folder, preprocessing=Letterbox(hps.SIDE, antialias))
        for antialias in (True, False)
    )
    assert one is not two
    assert one.model is two.model
    assert one.key != two.key


def test_contract(folder: Path) -> None:
    check_reward(lambda: build(folder), liked(lambda: build(folder), sample_batch(count=4)))


class FakeUpstream(ModuleType):
    """hpsv2.img_score by its signature: score(img_path, prompt, cp, hps_version) -> one number per picture."""

    device = "cpu"

    def __init__(self) -> None:
        super().__init__("hpsv2.img_score")
        self.calls: list[tuple[int, str, str | None, str]] = []

    def score(self, img_path: Any, prompt: str, cp: str | None = None, hps_version: str = "v2.0") -> list[float]:
        self.calls.append((len(img_path), prompt, cp, hps_version))
        return [image.getpixel((0, 0))[0] / 255 for image in img_path]


def test_backend_upstream_by_its_signature(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, package = FakeUpstream(), ModuleType("hpsv2")
    package.img_score = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hpsv2", package)
    monkeypatch.setitem(sys.modules, "hpsv2.img_score", fake)
    reward = HPSv21(folder, backend="upstream")
    with pytest.raises(RewardError, match="score before load"):
        reward.score(sample_batch(count=3))
    reward.load("cpu", "float32")
    batch = replace(sample_batch(count=3), prompts=["a", "b", "a"])
    expected = [image.getpixel((0, 0))[0] / 255 for image in batch.images]  # type: ignore[index]
    assert reward.score(batch).scores == expected
    path = str(folder / HPSv21.file)
    assert fake.calls == [(2, "a", path, "v2.1"), (1, "b", path, "v2.1")]
    with pytest.raises(RewardError, match="hpsv2 chose the device 'cpu', the entry says 'cuda:1'"):
        reward.load("cuda:1", "float32")


def test_backend_upstream_names_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hpsv2", None)
    with pytest.raises(RewardError, match=r"pip install 'mentor-rl\[hpsv2\]'"):
        HPSv2(folder, backend="upstream").load("cpu", "float32")
