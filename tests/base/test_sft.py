"""Supervised stages: what trains, at which rate, on which rows; accumulation; validation; interruption."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from tiny_stage import also, open_run, save_tiny_policy, train_tiny, without_dropout
from transformers import TrainerCallback

import mentor_base.sft
from mentor_base.checkpoint import load_policy
from mentor_base.data.emoji import EmojiWorld
from mentor_base.data.schema import Example
from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted
from mentor_base.settings import Mixture, Optimisation, TrainedParts, Validation
from mentor_base.sft import StageTrainer, schedule
from mentor_base.stage_data import Row, StageDataset
from mentor_base.states import newest_sound
from mentor_base.validation import StageValidation


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


class Watch(TrainerCallback):
    """Keeps the gradients of the first update and the optimizer's groups; may raise a signal."""

    def __init__(self, signal_at: int = -1) -> None:
        self.signal_at = signal_at
        self.gradients: dict[str, torch.Tensor] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.signal_at:
            signal.raise_signal(signal.SIGTERM)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.groups = optimizer.param_groups
        if not self.gradients:
            self.gradients = {
                name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
            }


def watched(monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> Watch:
    watch = Watch(**kwargs)
    monkeypatch.setattr(mentor_base.sft, "run_callbacks", also(watch))
    return watch


def test_loss_falls_per_task_and_the_run_folder_is_whole(policy: Path, tmp_path: Path) -> None:
    long = {
        "optimisation": Optimisation(lr=1e-2, steps=40, batch=8, threads=1),
        "validation": Validation(every=15, examples=16, grid=1),
    }
    run = train_tiny(policy, tmp_path / "run", **long)
    lines = list(run.metrics())
    validations = [line for line in lines if "val/mean" in line]
    assert [line["step"] for line in validations] == [0, 15, 30, 40]
    for task in ("t2i", "reconstruction", "segmentation"):
        assert validations[-1][f"val/{task}"] < 0.8 * validations[0][f"val/{task}"]
        assert run.sample_path(40, task).exists()
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert run.finished
    assert run.manifest()["metrics"]["val/mean"] == validations[-1]["val/mean"]
    load_policy(run.path)
    count = len(lines)
    train_tiny(policy, tmp_path / "run", **long)  # a finished run is left as it is
    assert len(list(run.metrics())) == count


def test_what_a_reference_is_worth(tmp_path: Path) -> None:
    """The loss is 1 where the reference is not the target: it rises by 1 with another one's."""

    class Likeness:
        def collate(self, rows: list[Row]) -> dict[str, Any]:
            return {"rows": rows}

        def loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
            pairs = [(*row.example.images[:1], row.example.target) for row in inputs["rows"]]
            return {"loss_N": torch.tensor([float(pair[0].tobytes() != pair[-1].tobytes()) for pair in pairs])}

    settings = Validation(every=1, examples=5, grid=0)
    validation: Any = StageValidation(
        settings, EmojiWorld(), ["t2i", "reconstruction"], cast("Any", Likeness()), open_run(tmp_path / "run"), batch=2
    )
    policy: Any = torch.nn.Linear(1, 1)
    policy.device = torch.device("cpu")
    metrics = validation(policy, policy, step=0, main_process=True)
    assert metrics == {"val/t2i": 0, "val/reconstruction": 0, "val/mean": 0, "reference/reconstruction": 1}


def test_accumulated_gradient_is_that_of_the_large_batch(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for micro in (8, 2):
        optimisation = Optimisation(lr=1e-3, steps=2, batch=8, micro_batch=micro, max_grad_norm=0.0, final_lr=0.25)
        with monkeypatch.context() as patch:
            patch.setattr(mentor_base.sft, "load_policy", lambda path: without_dropout(*load_policy(path)))
            watch = watched(patch)
            run = train_tiny(policy, tmp_path / f"micro{micro}", optimisation=optimisation)
        training = [line for line in run.metrics() if "loss" in line]
        results.append((watch, training))
        assert [line["lr"] for line in training] == pytest.approx([1e-3, 0.25e-3])  # counted in updates, not passes
    (large, large_log), (accumulated, accumulated_log) = results
    assert accumulated_log[0]["loss"] == pytest.approx(large_log[0]["loss"], rel=1e-6)
    scale = max(gradient.abs().max().item() for gradient in large.gradients.values())
    for name, gradient in large.gradients.items():
        assert (accumulated.gradients[name] - gradient).abs().max().item() <= 1e-6 * scale, name


def test_a_loss_that_is_no_number_costs_its_update_only(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_of = StageTrainer.compute_loss

    def spoilt(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        return loss_of(self, *args, **kwargs) * (math.nan if self.state.global_step == 1 else 1.0)

    monkeypatch.setattr(StageTrainer, "compute_loss", spoilt)
    run = train_tiny(policy, tmp_path / "run", optimisation=Optimisation(lr=1e-3, steps=4, batch=4))
    lines = [line for line in run.metrics() if "loss" in line]
    assert [line.get("skipped_updates", 0) for line in lines] == [0, 1, 0, 0]
    assert [math.isfinite(line["loss"]) for line in lines] == [True, False, True, True]
    assert all(value.isfinite().all() for value in load_policy(run.path)[0].state_dict().values())


def test_the_first_validation_waits_for_the_engine(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is prepared, a model that an engine deals out lies on the CPU."""
    prepared = []
    evaluate = StageTrainer.evaluate

    def watched(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        prepared.append((self.state.global_step, self.model_wrapped in self.accelerator._models))
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "evaluate", watched)
    train_tiny(policy, tmp_path / "run", optimisation=Optimisation(lr=1e-3, steps=1, batch=2))
    assert prepared == [(0, True), (1, True)]


def test_validation_changes_nothing(policy: Path, tmp_path: Path) -> None:
    optimisation = Optimisation(lr=3e-3, steps=3, batch=2, threads=1)
    runs = [
        train_tiny(policy, tmp_path / f"{every}", optimisation=optimisation, validation=Validation(every=every, grid=1))
        for every in (1, 3)
    ]
    assert [sum("val/mean" in line for line in run.metrics()) for run in runs] == [4, 2]
    first, second = ((run.final / "model.safetensors").read_bytes() for run in runs)
    assert first == second


def test_freeze_plan_and_decay(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watched(monkeypatch)
    optimisation = Optimisation(lr=1e-2, steps=1, batch=2, weight_decay=0.05)
    run = train_tiny(policy, tmp_path / "run", train=TrainedParts(), optimisation=optimisation)
    before, after = (load_policy(path)[0].state_dict() for path in (policy, run.path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith(("encoder.connector.", "decoder.")) for name in changed)
    assert {"encoder.connector.fc1.weight", "decoder.norm.weight", "decoder.head.weight"} <= changed
    dims = {group["weight_decay"]: {parameter.dim() for parameter in group["params"]} for group in watch.groups}
    assert dims == {0.05: {2}, 0.0: {1}}


def test_borrowed_vision_tower_cannot_be_trained(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage\.train\.vision: expected false"):
        train_tiny(policy, tmp_path / "run", train=TrainedParts(vision=True))


def test_schedule_counts_updates() -> None:
    optimisation = Optimisation(lr=1.0, steps=100, batch=1, warmup=0.05, final_lr=0.03)
    assert [schedule(optimisation, step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert schedule(optimisation, 5) == 1.0
    assert schedule(optimisation, 52) == pytest.approx(0.03 + 0.97 * 0.5, abs=1e-9)
    assert schedule(optimisation, 99) == pytest.approx(0.03)
    shares = [schedule(optimisation, step) for step in range(5, 100)]
    assert shares == sorted(shares, reverse=True)


class PlainWorld:
    tasks = ("t2i",)

    def example(self, task: str, split: str, seed: int, index: int) -> Example:
        return Example(task, f"{seed} {index}", (), Image.new("RGB", (4, 4)))

    def corpus(self) -> list[str]:
        return []


def test_conditions_drop_at_their_rate_whatever_the_batching() -> None:
    mixture = Mixture(weights={"t2i": 1}, condition_drop=0.1)
    drops = [StageDataset(mixture, 3, 4000, PlainWorld())[index].drop for index in range(4000)]
    assert abs(sum(drops) / 4000 - 0.1) < 3 * math.sqrt(0.1 * 0.9 / 4000)
    again = StageDataset(mixture, 3, 100, PlainWorld())
    assert [again[index].drop for index in reversed(range(100))] == drops[99::-1]
    other = StageDataset(mixture, 4, 100, PlainWorld())
    assert [other[index].drop for index in range(100)] != drops[:100]


def test_bad_settings_are_named(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="editing"):
        train_tiny(policy, tmp_path / "task", weights={"t2i": 1, "editing": 1})
    with pytest.raises(UserError, match=r"optimisation\.batch: expected a multiple of .* = 3 x 1, found 4"):
        train_tiny(policy, tmp_path / "batch", optimisation=Optimisation(lr=1, steps=1, batch=4, micro_batch=3))


def test_interruption_saves_and_the_same_command_goes_on(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        watched(patch, signal_at=3)
        with pytest.raises(Interrupted, match="stopped at step 4 of 9"):
            train_tiny(policy, tmp_path / "run")
    state = newest_sound(tmp_path / "run" / "state")
    assert state is not None
    assert state.name == "checkpoint-4"
    run = train_tiny(policy, tmp_path / "run")
    whole = train_tiny(policy, tmp_path / "whole")
    assert (run.final / "model.safetensors").read_bytes() == (whole.final / "model.safetensors").read_bytes()
