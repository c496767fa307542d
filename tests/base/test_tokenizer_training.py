"""Tokenizer training: it learns, resumes exactly, and uses its codes."""

from __future__ import annotations

import itertools
import math
import os
import signal
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from mentor_base import tokenizer_data, tokenizer_training
from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted
from mentor_base.runlog import RunFolder
from mentor_base.settings import Checkpoints, EmojiData, Optimisation, TokenizerLosses, TokenizerModel
from mentor_base.tokenizer_data import TrainingPictures, held_out
from mentor_base.tokenizer_training import (
    CodebookAverage,
    TokenizerTraining,
    learning_rate,
    measure,
    save_state,
    train_tokenizer,
)
from mentor_base.vq import VQConfig, VQModel

MODEL = TokenizerModel(
    image_size=64, channels=32, multipliers=(1,), residual_blocks=1, latent_channels=16, codebook_size=64, stem_patch=8,
    normalisation="none", attention=False,
)  # fmt: skip
OPTIMISATION = Optimisation(lr=2e-3, steps=12, batch=4, warmup=0.1, weight_decay=1e-4, betas=(0.9, 0.98))
DATA = EmojiData(styles=("twemoji",))


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(tokenizer_data, "SCENES", 12)
    monkeypatch.setattr(tokenizer_training, "VALIDATION_PICTURES", 16)
    monkeypatch.setattr(tokenizer_training, "TRAIN_PICTURES", 32)


def train(folder: Path, **changes: object) -> RunFolder:
    run = RunFolder.open(folder, {"kind": "tokenizer", "seed": 3})
    settings = {
        "model": MODEL, "losses": TokenizerLosses(), "data": DATA, "optimisation": OPTIMISATION,
        "checkpoints": Checkpoints(every=5), "validate_every": 6, "seed": 3,
    }  # fmt: skip
    train_tokenizer(**{**settings, **changes}, run=run)  # type: ignore[arg-type]
    return run


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return VQModel.from_pretrained(run.final).state_dict()


def test_training_raises_psnr() -> None:
    optimisation = OPTIMISATION.model_copy(update={"steps": 60, "batch": 8})
    training = TokenizerTraining(MODEL, TokenizerLosses(), optimisation, seed=0)
    pictures = TrainingPictures(DATA, seed=0, scenes=8)
    wanted = held_out("val", "coloured", 24, DATA)
    before, _ = measure(training.averaged, wanted)
    for step in range(optimisation.steps):
        training.advance(pictures.batch(step, optimisation.batch))
    after, counts = measure(training.averaged, wanted)
    assert after > before + 1
    assert (counts > 0).sum() > 16


def test_interrupted_run_equals_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole")
    draw, steps = TrainingPictures.batch, []

    def batch(self: TrainingPictures, step: int, size: int) -> torch.Tensor:
        steps.append(step)
        if step == 7 and steps.count(7) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, step, size)

    monkeypatch.setattr(TrainingPictures, "batch", batch)
    with pytest.raises(Interrupted, match="stopped at step 8"):
        train(tmp_path / "halves")
    torch.randn(5)  # the state of torch's own generator must not matter
    halves = train(tmp_path / "halves")
    assert steps == list(range(12))
    assert_same_run(whole, halves)


@pytest.mark.parametrize("every", [5, 9])
def test_killed_run_goes_on_from_its_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """The one before step 8, or none at all."""
    states = Checkpoints(every=every)
    whole = train(tmp_path / "whole", checkpoints=states)
    draw = TrainingPictures.batch

    def batch(self: TrainingPictures, step: int, size: int) -> torch.Tensor:
        if step == 8:
            raise RuntimeError("killed")
        return draw(self, step, size)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingPictures, "batch", batch)
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path / "halves", checkpoints=states)
    (tmp_path / "halves" / "state").mkdir(exist_ok=True)
    (tmp_path / "halves" / "state" / ".partial").write_bytes(b"half a state")
    assert_same_run(whole, train(tmp_path / "halves", checkpoints=states))


def test_a_state_that_does_not_fit_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state({"step": 1}, tmp_path, 1, keep=2)

    def full(state: object, file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RuntimeError, match="failed writing"):
        save_state({"step": 2}, tmp_path, 2, keep=2)
    assert [file.name for file in tmp_path.iterdir()] == ["step_00000001.pt"]


def test_a_loss_that_is_no_number_leaves_the_weights(tmp_path: Path) -> None:
    training = TokenizerTraining(MODEL, TokenizerLosses(), OPTIMISATION, seed=0)
    pixels = TrainingPictures(DATA, seed=0, scenes=0).batch(0, 4)
    training.advance(pixels)
    with pytest.raises(UserError, match=r"step 2: expected a finite loss, found nan; lower optimisation\.lr"):
        training.advance(pixels * math.nan)
    assert training.step == 1
    assert all(value.isfinite().all() for value in training.model.state_dict().values())


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    for (name, tensor), again in zip(weights(one).items(), weights(other).values(), strict=True):
        assert torch.equal(tensor, again), name
    timings = ("seconds", "cpu_seconds")
    metrics = [[{k: v for k, v in line.items() if k not in timings} for line in run.metrics()] for run in (one, other)]
    assert metrics[0] == metrics[1]


def test_final_is_what_was_measured(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    model = VQModel.from_pretrained(run.final).eval()
    assert model.dtype == torch.float32
    score, _ = measure(model, held_out("unseen_subjects", "white", None, DATA))
    result = run.manifest()["result"]
    assert score == pytest.approx(result["unseen_psnr_white"], abs=1e-4)
    assert (run.final / "model.safetensors").stat().st_size < 2.2 * result["parameters"] + 20_000
    assert sorted(path.name for path in (run.path / "samples").iterdir())[-1] == "step_000012_val_white.png"


def test_dead_codes_are_revived_where_the_error_is() -> None:
    torch.manual_seed(0)
    model = VQModel(VQConfig(**{**MODEL.model_dump(), "codebook_size": 8}))
    average = CodebookAverage(model)
    served = torch.nn.functional.normalize(torch.ones(1, 60, 8), dim=-1)
    lost = torch.nn.functional.normalize(torch.randn(1, 4, 8), dim=-1)
    latents = torch.cat([served, lost], dim=1)
    model.codes.weight.data[:] = served[0, 0]
    average.counts_V[:], average.sums_VK[:] = 0.001, served[0, 0] * 0.001
    tokens = torch.zeros(1, 64, dtype=torch.long)
    average.update(latents, tokens, torch.Generator().manual_seed(0))
    assert average.revived == 7
    products = (model.codebook @ lost[0].T).amax(0)
    assert torch.allclose(products, torch.ones(4), atol=1e-5)


def test_batches_depend_on_seed_and_step_only() -> None:
    one, other = TrainingPictures(DATA, seed=1, scenes=8), TrainingPictures(DATA, seed=1, scenes=8)
    one.batch(0, 8)
    assert torch.equal(one.batch(5, 8), other.batch(5, 8))
    assert not torch.equal(one.batch(5, 8), one.batch(6, 8))
    assert {tuple(one.batch(step, 1).shape) for step in range(20)} == {(1, 3, 64, 64)}, "a scene now and then"
    assert one.batch(5, 8).aminmax().min >= -1
    assert one.batch(5, 8).aminmax().max <= 1


def test_held_out_pictures_lie_on_their_ground() -> None:
    white = held_out("unseen_subjects", "white", 8, DATA)
    coloured = held_out("unseen_subjects", "coloured", 8, DATA)
    assert white.shape == (8, 3, 64, 64)
    assert (white.amax((2, 3)) == 1).all()
    assert (white != coloured).flatten(1).any(1).all()


def test_learning_rate_warms_up_and_ends_at_its_floor() -> None:
    optimisation = OPTIMISATION.model_copy(update={"steps": 100, "final_lr": 0.1})
    rates = [learning_rate(step, optimisation) for step in range(100)]
    assert rates[0] == pytest.approx(2e-4)
    assert max(rates) == pytest.approx(2e-3)
    assert rates[-1] == pytest.approx(2e-4, rel=0.01)
    assert all(math.isclose(a, b) or a > b for a, b in itertools.pairwise(rates[10:]))


def test_settings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image_size: expected 64"):
        train(tmp_path / "a", model=MODEL.model_copy(update={"image_size": 128}))
    with pytest.raises(UserError, match="micro_batch"):
        train(tmp_path / "b", optimisation=OPTIMISATION.model_copy(update={"micro_batch": 2}))
