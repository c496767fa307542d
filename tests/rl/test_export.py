"""``mentor export``: what is written loads again bit for bit, and the card shows the run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.card import USE
from mentor_rl.export import export_run


def test_the_exported_policy_draws_the_same_tokens(grpo_run: Path, tmp_path: Path) -> None:
    import torch

    from mentor_base.checkpoint import load_policy
    from mentor_base.data.schema import Prompt
    from mentor_base.generate import draw
    from mentor_base.model import MentorForConditionalGeneration
    from mentor_base.processor import MentorProcessor

    out = export_run(grpo_run, tmp_path / "fox")
    prompt = Prompt("<image> this red fox", (Image.new("RGB", (32, 32), "orange"),))
    model, processor = load_policy(grpo_run)
    before = draw(model, processor, [prompt], group_size=4, seed=3)
    model, processor = MentorForConditionalGeneration.from_pretrained(str(out)), MentorProcessor.from_pretrained(out)
    after = draw(model.eval(), processor, [prompt], group_size=4, seed=3)
    assert torch.equal(before.tokens_NL, after.tokens_NL)
    assert torch.equal(before.logp_NL, after.logp_NL)
    assert len(torch.unique(before.tokens_NL)) > 4


def test_half_precision_is_half_the_size_and_loads_as_float32(grpo_run: Path, tmp_path: Path) -> None:
    from mentor_base.checkpoint import load_policy

    whole = export_run(grpo_run, tmp_path / "whole") / "model.safetensors"
    half = export_run(grpo_run, tmp_path / "half", "float16") / "model.safetensors"
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    model, _ = load_policy(half.parent)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}


def test_the_card_tells_how_to_draw(grpo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (export_run(grpo_run, tmp_path / "fox") / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (32, 32), "orange").save("fox.png")
    told = USE.format(name="fox")
    assert told in card
    exec(told.split("```python\n")[1].split("```")[0], {})
    assert Image.open("out.png").size == (32, 32)


def test_the_card_shows_the_run(grpo_run: Path, tmp_path: Path) -> None:
    out = export_run(grpo_run, tmp_path / "fox")
    card = (out / "README.md").read_text(encoding="utf-8")
    for fact in (
        "# foxes",
        "foxes in other styles",
        "recipes/emoji/checkpoints/stage2",
        "| seed | 7 |",
        "| optimizer steps | 3 |",
        "| torch |",
        "| rewards/style/mean | 0 | 0.3 |",
        "| after RL | 0.500 [0.400, 0.600] | 0.250 |",
        "seed: 7",
        "DATA_LICENSES.md",
        "mentor sample fox ",
    ):
        assert fact in card, fact
    shown = [line.split("](")[1].rstrip(")") for line in card.splitlines() if line.startswith("![")]
    assert {"pictures/before_after.png", "pictures/step_000003_subject.png"} <= set(shown)
    assert any(link.startswith("curves/") for link in shown)
    for link in shown:
        assert (out / link).stat().st_size > 0
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    for name in ("LICENSE", "DATA_LICENSES.md", "recipe.yaml", "manifest.json", "results/emojibench.json"):
        assert (out / name).stat().st_size > 0


def test_every_chart_of_the_card_has_a_file_of_its_own(grpo_run: Path, tmp_path: Path) -> None:
    run = RunFolder(grpo_run)
    for step in range(4, 7):
        run.log(step, **{"rewards/style/seconds": step, "seconds/update": 2 * step, "rewards/my-own/mean": step})
    out = export_run(grpo_run, tmp_path / "fox")
    card = (out / "README.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^!\[(.*)\]\((curves/.*)\)$", card, re.MULTILINE))
    assert shown.keys() >= {"Seconds a step", "Each reward: seconds a step", "Loss"}
    assert len(set(shown.values())) == len(shown) == len(list((out / "curves").iterdir()))
    means = (out / shown["Each reward: mean of a step"]).read_text(encoding="utf-8")
    assert all(f">{name}</text>" in means for name in ("style", "my-own"))


def test_a_tokenizer_is_copied(grpo_run: Path, tmp_path: Path) -> None:
    marker = grpo_run / "recipe.yaml"
    marker.write_text(marker.read_text(encoding="utf-8").replace("kind: grpo", "kind: tokenizer"), encoding="utf-8")
    out = export_run(grpo_run, tmp_path / "vq")
    assert (out / "model.safetensors").read_bytes() == (grpo_run / "final" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="--dtype: expected float32"):
        export_run(grpo_run, tmp_path / "vq16", "float16")


def test_nothing_is_overwritten_and_nothing_half_is_left(
    grpo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    with pytest.raises(UserError, match=r"expected a new or empty folder, found mine.txt in it"):
        export_run(grpo_run, full)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mentor_rl.export.write_card", disk_full)
    held = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        export_run(grpo_run, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == held


def test_what_is_no_finished_run(grpo_run: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (grpo_run / "final" / "config.json").unlink()
    for path, line in {
        tmp_path / "none": "expected a run folder, found no such folder",
        tmp_path / "other": "expected a run folder (with recipe.yaml), found a folder of another kind",
        grpo_run: "expected a finished run, found no model in",
    }.items():
        with pytest.raises(UserError) as caught:
            export_run(path, tmp_path / "out")
        assert f"{path}: {line}" in str(caught.value)
