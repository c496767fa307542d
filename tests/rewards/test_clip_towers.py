"""CLIP towers: preprocessing, one copy per folder, each picture embedded once, strict loading."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mentor_rewards.clip_preprocessing import MEAN, STD, Preprocessing
from mentor_rewards.clip_towers import ClipTower
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry, RewardError
from mentor_rewards.testing import sample_batch
from PIL import Image
from safetensors.torch import load_file, save_file


def test_embeddings_are_the_models_own(clip_folder: Path) -> None:
    from transformers import CLIPModel

    batch = sample_batch(size=32)
    tower = ClipTower.load(clip_folder)
    pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in batch.images])
    pixels = torch.tensor((pixels - np.float32(MEAN)) / np.float32(STD)).permute(0, 3, 1, 2)
    tokens = tower.tokenizer(list(batch.prompts), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = CLIPModel.from_pretrained(clip_folder).eval()(pixel_values=pixels, **tokens)
    assert torch.allclose(tower.image_embeddings(batch.images), out.image_embeds, atol=1e-5)
    assert torch.allclose(tower.text_embeddings(batch.prompts), out.text_embeds, atol=1e-5)


def test_composite_scores_are_cosines(clip_folder: Path) -> None:
    batch = sample_batch()
    two = replace(batch, references=[(*refs, batch.images[0]) for refs in batch.references])
    entry = RewardEntry(options={"checkpoint": clip_folder})
    with Composite({"clip_image": entry, "clip_text": entry}) as composite:
        found = composite.score(two)
    tower = ClipTower.load(clip_folder)
    pictures, prompts = tower.image_embeddings(batch.images), tower.text_embeddings(batch.prompts)
    references = tower.image_embeddings([refs[0] for refs in batch.references])
    expected = ((pictures * references).sum(1) + pictures @ pictures[0]) / 2
    assert found.raw["clip_image"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.raw["clip_text"] == pytest.approx((pictures * prompts).sum(1).tolist(), abs=1e-5)


def test_each_picture_and_prompt_is_embedded_once(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for method in ("image_embeddings", "text_embeddings"):
        plain = getattr(ClipTower, method)
        monkeypatch.setattr(
            ClipTower, method, lambda self, items, plain=plain: seen.append(len(items)) or plain(self, items)
        )
    batch = sample_batch(count=6)  # 6 pictures, 3 references (equal pixels within a group), 3 prompts
    batch = replace(batch, references=[(refs[0].copy(),) for refs in batch.references])
    entry = RewardEntry(options={"checkpoint": clip_folder}, batch=2)
    with Composite({"clip_image": entry, "clip_text": entry}) as composite:
        composite.score(batch)
        assert sum(seen) == 6 + 3 + 3
        composite.score(replace(batch, shared={}))  # nothing is kept between calls
        assert sum(seen) == 2 * (6 + 3 + 3)


def test_one_copy_while_somebody_holds_it(clip_folder: Path) -> None:
    one, two = ClipTower.load(clip_folder), ClipTower.load(str(clip_folder) + "/../" + clip_folder.name)
    assert one is two
    assert ClipTower.load(clip_folder, dtype="bfloat16") is not one
    model = weakref.ref(one.model)
    del one, two
    gc.collect()
    assert model() is None


def test_truncated_prompts_are_reported(clip_folder: Path) -> None:
    batch = replace(sample_batch(count=2), prompts=["a red disc", "a red disc a red disc a red disc"])
    with Composite({"clip_text": RewardEntry(options={"checkpoint": clip_folder})}) as composite:
        assert composite.score(batch).details["clip_text"]["truncated"] == [False, True]


def test_preprocessing_round_trip_and_geometry(tmp_path: Path) -> None:
    facts = Preprocessing(short=20, crop=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    facts.save(tmp_path)
    assert Preprocessing.load(tmp_path) == facts
    wide = Image.new("RGB", (80, 40), "black")
    wide.paste("white", (20, 0, 60, 40))
    assert facts([wide]).shape == (1, 3, 16, 16)
    assert facts([wide]).min() == 1.0  # only the middle is left


def test_preprocessing_reads_the_old_spelling(tmp_path: Path) -> None:
    old = {"size": 224, "crop_size": 224, "image_mean": list(MEAN), "image_std": list(STD), "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    assert Preprocessing.load(tmp_path) == Preprocessing()


def test_bad_folders(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"expected a CLIPModel folder, found no config\.json"):
        ClipTower.load(tmp_path)
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "logit_scale"}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RewardError, match="missing keys: logit_scale"):
        ClipTower.load(folder)
    save_file({**tensors, "extra": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RewardError, match="unexpected keys: extra"):
        ClipTower.load(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RewardError, match="the model pools at token 5"):
        ClipTower.load(folder)
