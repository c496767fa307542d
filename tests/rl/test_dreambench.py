"""DreamBench: the data set's own prompt file, towers by size, and cosines worked by hand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mentor_base.errors import UserError
from mentor_rl.cli import main
from mentor_rl.evaluate.benchmark import Sample, Scored, Unscored
from mentor_rl.evaluate.dreambench import ALL, DreamBench
from mentor_rl.evaluate.dreambench_data import items_of, read_subjects
from mentor_rl.evaluate.recipes import DreamBenchRecipe
from mentor_rl.evaluate.towers import is_published

LIVE = ["cat", "cat2", "dog", "dog2", "dog3", "dog5", "dog6", "dog7", "dog8"]
OBJECTS = [f"toy{number}" for number in range(20)] + ["bear_plushie"]


def prompt_list(what: str) -> str:
    lines = ",\n".join(f"'a {{0}} {{1}} {what} {n}'.format(unique_token, class_token)" for n in range(25))
    return f"prompt_list = [\n{lines}\n]\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of google/dreambooth's dataset/, two pictures a subject."""
    folder = tmp_path_factory.mktemp("dreambench")
    classes = [f"{name},{name[:3]}" for name in LIVE] + [f"{name},stuffed animal" for name in OBJECTS]
    text = ["Classes\n", "subject_name,class", *classes, "\nPrompts\n\nObject Prompts\n", prompt_list("on a rug")]
    text += ["\nLive Subject Prompts\n", prompt_list("in a hat")]
    (folder / "prompts_and_classes.txt").write_text("\n".join(text), encoding="utf-8")
    for place, name in enumerate(LIVE + OBJECTS):
        (folder / name).mkdir()
        for number in (0, 1):
            shade = (8 * place, 200 * number, 40)
            Image.new("RGB", (16, 16), shade).save(folder / name / f"{number:02d}.jpg")
    return folder


def test_prompts_are_read_and_not_run(data: Path) -> None:
    subjects = read_subjects(data)
    items = list(items_of(subjects, "<image> {prompt}"))
    assert len(items) == 750
    assert sum(subject.live for subject in subjects) == 9
    assert items[0].text == "<image> a cat in a hat 0"  # no unique token, no doubled blank
    assert items[-1].text == "<image> a stuffed animal on a rug 24"
    assert items[0].prompt().images[0].size == (16, 16)


def test_hidden_files_are_no_pictures(data: Path, tmp_path: Path) -> None:
    """A Mac's archive holds ._00.jpg beside 00.jpg: it would be a subject's first picture."""
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "cat" / "._00.jpg").write_bytes(b"resource fork")
    assert [file.name for file in read_subjects(tmp_path / "data")[0].pictures] == ["00.jpg", "01.jpg"]


def test_faults_of_the_data_set_are_one_line(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no prompts_and_classes\.txt; take the folder dataset/ of google/dream"):
        read_subjects(tmp_path)
    text = (data / "prompts_and_classes.txt").read_text()
    (tmp_path / "prompts_and_classes.txt").write_text(text)
    with pytest.raises(UserError, match=r"expected the pictures of 'cat', 00\.jpg and so on, found none"):
        read_subjects(tmp_path)
    (tmp_path / "prompts_and_classes.txt").write_text(text.replace("'a {0} {1} on a rug 3'", "__import__('os')"))
    with pytest.raises(UserError, match=r"two lists of 25 prompts, found 30 and \[24, 25\]"):
        read_subjects(tmp_path)


def benchmark(data: Path, **changes: Any) -> DreamBench:
    values = {"kind": "evaluate", "benchmark": "dreambench", "run": "unused", "images": {"x": str(data)}}
    return DreamBench(DreamBenchRecipe.model_validate({**values, "data": str(data), **changes}))


def test_missing_towers_are_noticed_before_there_is_a_run_folder(
    data: Path, random_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_towers: dict[str, str]
) -> None:
    recipe, bare = tmp_path / "bench.yaml", tmp_path / "bare"
    shutil.copytree(tiny_towers["clip"], bare)
    (bare / "tokenizer.json").unlink()
    for clip, found in (
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32: no such path here, .* `hf download openai/"),
        (bare, f"{bare}: expected a tokenizer, tokenizer.json or vocab.json, found neither"),
    ):
        towers = {"clip": str(clip), "dino": tiny_towers["dino"], "dino_s16": None, "dinov2": None}
        recipe.write_text(
            f"{{kind: evaluate, benchmark: dreambench, run: {tmp_path}/run, policies: {{fox: {random_policy}}}, "
            f"data: {data}, towers: {json.dumps(towers)}}}"
        )
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", str(recipe)])
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert len(line.splitlines()) == 1
        assert re.match(f"reward 'CLIP-I': {found}", line), line
        assert not (tmp_path / "run").exists()
    benchmark(data, towers=tiny_towers).check()


def test_means_and_deviation_over_seeds_by_hand(data: Path) -> None:
    """Seed means of .4 and .6: 50 ± 14.142 (sample deviation)."""
    bench = benchmark(data, seeds=[0, 1], towers={"dino_s16": None, "dinov2": None})
    items = tuple(bench.items())
    facts = {
        (item.id, seed): {"DINOv1": 0.3 + 0.2 * seed + 0.2 * (place % 2), "CLIP-I": 1.0, "CLIP-T": 0.25}
        for place, item in enumerate(items[:50])
        for seed in (0, 1)
    }
    table = bench.tabulate(Scored("r", items, (0, 1), facts, lambda item, seed: Path()))
    assert table.metrics[""]["DINOv1"] == pytest.approx(50.0)
    assert table.metrics[""]["DINOv1 ±"] == pytest.approx(20 / np.sqrt(2))
    assert table.metrics[""]["CLIP-T"] == pytest.approx(25.0)
    assert "objects" not in table.metrics  # none of them was scored
    assert len(table.per_item["item"]) == 50
    assert not bench.stand_in


@pytest.fixture(scope="module")
def tiny_towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    from mentor_rewards.clip_preprocessing import Preprocessing
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("towers")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "<start>": 2, "<end>": 3, "cat": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder / "clip")
    text = {**small, "vocab_size": 5, "max_position_embeddings": 8, "eos_token_id": 3, "bos_token_id": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder / "clip")
    Preprocessing(short=32, crop=32).save(folder / "clip")
    vit = ViTConfig(**small, patch_size=8, image_size=224)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "dino")
    return {"clip": str(folder / "clip"), "dino": str(folder / "dino"), "dino_s16": None, "dinov2": None}


def test_a_copy_of_the_reference_is_100_and_stand_ins_are_marked(
    data: Path, tiny_towers: dict[str, str | None]
) -> None:
    torch.set_num_threads(1)
    bench = benchmark(data, towers=tiny_towers, all_references=True)
    assert bench.stand_in
    item = bench.items()[0]
    bench.load("cpu")
    try:
        found = bench.score([Sample(item, 0, item.prompt().images[0])])
        judge = bench.judge
    finally:
        bench.unload()
    (facts,) = found
    assert not isinstance(facts, Unscored)
    assert facts["CLIP-I"] == pytest.approx(1.0, abs=1e-5)
    assert facts["DINOv1"] == pytest.approx(1.0, abs=1e-5)
    assert facts[f"DINOv1{ALL}"] < 1.0 - 1e-7
    assert abs(facts["CLIP-T"]) <= 1.0
    assert "model.safetensors" in judge


def test_towers_are_known_by_id_or_size(tmp_path: Path) -> None:
    assert is_published("DINOv1", "facebook/dino-vits8")
    assert not is_published("DINOv1", "facebook/dino-vits16")
    config = {"model_type": "vit", "hidden_size": 384, "patch_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_published("DINOv1", str(tmp_path))
    assert not is_published("DINOv1 S/16", str(tmp_path))
