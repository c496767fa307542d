"""GRPO in less memory: gradient checkpointing, and adapters whose reference is the policy without them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_toys import TIMED, run_recipe, toy_policy, toy_recipe

from mentor_base.checkpoint import load_policy
from mentor_base.errors import UserError
from mentor_rl import grpo_run
from mentor_rl import trainer as trainer_module


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return toy_policy(tmp_path_factory.mktemp("toy") / "policy")


def test_gradient_checkpointing_takes_the_same_steps(policy: Path, tmp_path: Path) -> None:
    traces = []
    for on in (False, True):
        changes = {"optimisation": {"gradient_checkpointing": on}, "train": {"text_encoder": True}}
        lines = run_recipe(toy_recipe(policy, tmp_path / f"run-{on}", 2, **changes))
        traces.append([{k: v for k, v in line.items() if not TIMED.fullmatch(k)} for line in lines])
    for plain, checkpointed in zip(*traces, strict=True):
        assert checkpointed == pytest.approx(plain, rel=1e-4, abs=1e-6)
    assert max(line["gap/max"] for line in traces[1][1:]) < 1e-3


def test_adapters_learn_against_the_policy_without_them(policy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    held: dict[str, Any] = {}
    seam = trainer_module.MentorGRPOTrainer._get_per_token_logps_and_entropies
    finish = grpo_run.finish

    def watched_seam(self: Any, model: Any, *args: Any, **options: Any) -> Any:
        found = seam(self, model, *args, **options)
        held.setdefault("reference" if model is self.ref_model else "policy", found[0].detach().clone())
        return found

    def watched_finish(trainer: Any, processor: Any, run: Any) -> None:
        held["adapted"] = log_probs(trainer.model.eval())
        held["state"] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        finish(trainer, processor, run)

    monkeypatch.setattr(trainer_module.MentorGRPOTrainer, seam.__name__, watched_seam)
    monkeypatch.setattr(grpo_run, "finish", watched_finish)
    lines = run_recipe(adapted_recipe(policy, tmp_path / "run"))
    torch.testing.assert_close(held["reference"], held["policy"], atol=1e-5, rtol=0)  # the prefix is padded otherwise
    assert lines[1]["kl"] == pytest.approx(0.0, abs=1e-8)
    assert lines[-1]["kl"] > 1e-6
    assert max(line.get("gap/max", 0.0) for line in lines[1:]) < 1e-3
    start, tuned = load_policy(policy)[0], load_policy(tmp_path / "run")[0]
    torch.testing.assert_close(log_probs(tuned), held["adapted"], atol=1e-5, rtol=1e-5)
    assert (log_probs(start) - log_probs(tuned)).abs().max() > 1e-3
    base = {name.replace(".base_layer.", "."): value for name, value in held["state"].items()}
    assert all(torch.equal(base[name], value) for name, value in start.state_dict().items())


def test_adapters_resume_bit_for_bit(policy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run_recipe(adapted_recipe(policy, tmp_path / "whole"))
    monkeypatch.setattr(grpo_run, "finish", lambda *_: None)
    run_recipe(adapted_recipe(policy, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run/state/checkpoint-4")
    monkeypatch.undo()
    run_recipe(adapted_recipe(policy, tmp_path / "run"))
    files = [tmp_path / name / "final/model.safetensors" for name in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_dropout_of_adapters_is_refused(policy: Path, tmp_path: Path) -> None:
    recipe = adapted_recipe(policy, tmp_path / "run")
    recipe["train"]["lora"]["dropout"] = 0.1
    with pytest.raises(UserError, match=r"train\.lora\.dropout: expected 0 .*, found 0\.1"):
        run_recipe(recipe)


def test_adapters_without_their_layers_are_refused_before_a_weight_is_read(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo_run, "load_policy", lambda *_: pytest.fail("the policy was read"))
    recipe = adapted_recipe(policy, tmp_path / "run")
    recipe["train"]["lora"]["targets"] = ["qvk"]
    with pytest.raises(UserError, match=r"train\.lora\.targets: 'qvk' is no linear layer .*; did you mean 'qkv'\?"):
        run_recipe(recipe)


def adapted_recipe(policy: Path, run: Path) -> dict[str, Any]:
    train = {"text_encoder": True, "lora": {"rank": 4, "alpha": 16}}
    return toy_recipe(policy, run, 4, train=train, checkpoints={"every": 2}, algorithm={"inner_iterations": 2})


def log_probs(model: Any) -> torch.Tensor:
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with torch.no_grad():
        return model(mode="logprobs", **prompt, tokens=torch.arange(16)[None]).logp_NL
