"""Scorers: losses against hand-worked values, captions, and a training run that learns and resumes exactly."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from mentor_rewards.classifier import ConvClassifier
from mentor_rewards.clip_towers import ClipTower

from mentor_base.data.atlas import Atlas
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_base.settings import EmojiData, Optimisation
from mentor_rl.evaluate.evaluator import Evaluator
from mentor_rl.recipe import Tokenized
from mentor_rl.scorers import losses, training
from mentor_rl.scorers.captions import caption_tokenizer, draw_caption
from mentor_rl.scorers.pictures import PLAIN, SOFT, SpriteBank, compose
from mentor_rl.scorers.views import Looks, Pictures

TOKENIZER = str(Path(__file__).parents[2] / "recipes" / "emoji" / "checkpoints" / "tokenizer")
TWO_STYLES = EmojiData(styles=("noto", "fluent-mono"))
THREE_STYLES = EmojiData(styles=("noto", "twemoji", "fluent-mono"))


def train(
    folder: Path,
    scorer: str,
    steps: int,
    batch: int,
    every: int,
    data: EmojiData = TWO_STYLES,
    tokenized: Tokenized | None = None,
) -> RunFolder:
    run = RunFolder.open(folder, {"scorer": scorer, "seed": 3})
    optimisation = Optimisation(lr=2e-3, steps=steps, batch=batch, threads=1)
    training.train_scorer(
        scorer=scorer,
        data=data,
        optimisation=optimisation,
        augment="light",
        tokenized=tokenized,
        validate_every=every,
        seed=3,
        run=run,
    )
    return run


def test_contrastive_loss_by_hand() -> None:
    """Two labels, two views each, orthogonal labels: logits 1/t for the partner, 0 for the two others."""
    embedding = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    label = torch.tensor([0, 0, 1, 1])
    expected = -math.log(math.exp(2.0) / (math.exp(2.0) + 2.0))
    assert losses.same_label_contrast(embedding, label, 0.5).item() == pytest.approx(expected, rel=1e-6)


def test_clip_loss_spreads_over_all_true_captions() -> None:
    """Where captions 0 and 1 are true of both pictures, the best loss is log 2, whatever the diagonal says."""
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert losses.pair_contrast(image, image, everything, torch.tensor(9.0)).item() == pytest.approx(math.log(2))
    own = torch.eye(2, dtype=torch.bool)
    far = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert losses.pair_contrast(far, far, own, torch.tensor(50.0)).item() == pytest.approx(0.0, abs=1e-6)


def test_retrieval_and_ranking() -> None:
    embedding = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.6, 0.7]]), dim=1)
    subject, style = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    same, unrelated = losses.pair_cosines(embedding, subject, style)
    assert len(same) == 4
    assert len(unrelated) == 8
    # Picture 2 has picture 3 as its nearest of the other style, picture 3 has 2 (cosine .76 against .71): all right.
    assert losses.retrieval_top1(embedding, subject, style) == 1.0
    # Now picture 3 is nearer to picture 0, of another subject.
    embedding[3] = torch.nn.functional.normalize(torch.tensor([0.8, 0.6]), dim=0)
    assert losses.retrieval_top1(embedding, subject, style) == pytest.approx(0.75)
    assert losses.ranking(torch.tensor([0.9, 0.4]), torch.tensor([0.1, 0.5])) == pytest.approx(0.75)


def test_captions_are_true_of_their_picture_only() -> None:
    for i in range(50):
        caption = draw_caption(Random(i), (3, 1, 2), "red fox", "line art", ("animal",))
        assert "red fox" in caption.text
        assert "<image>" not in caption.text
        assert caption.fits(3, 1, 2)
        assert not caption.fits(4, 1, 2)
        assert caption.fits(3, 0, 2) == ("line art" not in caption.text)


def test_tokenizer_writes_every_text() -> None:
    tokenizer = caption_tokenizer(["a red fox in line art style", "an owl"] * 5, vocabulary=300)
    ids = tokenizer("Crêpe on a plate")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids


def test_pictures_depend_on_the_generator_only() -> None:
    bank = SpriteBank.of(Atlas.load(), "val", ("noto",))
    rows, grounds = np.arange(6), np.arange(6)
    one, two = (compose(bank.rgba_M4HW[rows], grounds, np.random.default_rng(5), SOFT) for _ in range(2))
    assert torch.equal(one, two)
    assert one.min() >= -1
    assert one.max() <= 1
    plain = compose(bank.rgba_M4HW[rows], grounds, np.random.default_rng(5), PLAIN)
    assert float((plain - one).abs().mean()) > 0.005


def test_a_share_of_the_pictures_goes_through_the_tokenizer() -> None:
    """Those pictures equal the tokenizer's reconstruction of what the others stay; the grounds stay readable."""
    looks = Looks.of("light", Tokenized(tokenizer=TOKENIZER, share=0.5))
    plain, tokenized = Pictures(TWO_STYLES, Looks.of("light", None), 3), Pictures(TWO_STYLES, looks, 3)
    rows, grounds = np.arange(12), np.arange(12)
    before, after = (p.picture(rows, grounds, p.rng(7)) for p in (plain, tokenized))
    changed = (before - after).abs().amax((1, 2, 3)) > 0
    assert 2 <= int(changed.sum()) <= 10
    assert torch.allclose(after[changed], looks.round_trip(before[changed]))
    assert set(tokenized.views) - set(plain.views) == {"val_tokenized", "unseen_tokenized"}


def test_a_style_scorer_learns_and_loads_as_a_reward(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "style", steps=30, batch=24, every=30)
    scored = ConvClassifier.load(run.final)
    assert scored.config.labels == ("noto", "fluent-mono")
    last = list(run.metrics())[-1]
    assert last["unseen/top1"] > 0.8
    card = (run.final / "README.md").read_text(encoding="utf-8")
    assert "mentor train recipes/emoji/style.yaml" in card
    assert f"{run.manifest()['final_metrics']['unseen/top1']:.4f}" in card


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two states: the steps after the last state are done again, and end in the same weights."""
    whole = train(tmp_path / "whole", "evaluator", steps=4, batch=12, every=2, data=THREE_STYLES)
    advance, calls = training._Loop.advance, []

    def dying(loop: training._Loop) -> str:
        calls.append(loop.step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return advance(loop)

    monkeypatch.setattr(training._Loop, "advance", dying)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", "evaluator", steps=4, batch=12, every=2, data=THREE_STYLES)
    resumed = train(tmp_path / "killed", "evaluator", steps=4, batch=12, every=2, data=THREE_STYLES)
    assert calls == [0, 1, 2, 3, 2, 3]
    weights = [(run.final / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]
    assert [line["step"] for line in resumed.metrics()] == [line["step"] for line in whole.metrics()]
    calibration = Evaluator.load(resumed.path).calibration
    assert calibration.same != calibration.unrelated


def test_clip_folder_loads_as_a_tower(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "clip", steps=2, batch=8, every=2)
    tower = ClipTower.load(run.final)
    sprite = Atlas.load().sprite("1f98a", "noto")
    assert tower.image_embeddings([sprite]).shape == tower.text_embeddings(["a fox"]).shape
    assert not any(
        tower.too_long(["this smiling face with sunglasses in rounded cartoon style on a purple background"])
    )


def test_a_batch_smaller_than_a_subject_s_views_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimisation.batch: expected 1 to \d+ subjects x 3 views, found 0"):
        train(tmp_path / "run", "evaluator", steps=1, batch=2, every=1, data=THREE_STYLES)


@pytest.mark.parametrize(
    ("scorer", "data", "message"),
    [
        ("styel", TWO_STYLES, "did you mean 'style'"),
        ("style", EmojiData(styles=("notto",)), "did you mean 'noto'"),
    ],
)
def test_bad_names_get_one_line(tmp_path: Path, scorer: str, data: EmojiData, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", scorer, steps=1, batch=8, every=1, data=data)
