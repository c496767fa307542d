"""The best policy by a metric of the fixed prompts: chosen, kept whole, exported, and the same after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_toys import run_recipe, toy_policy, toy_recipe
from pydantic import ValidationError
from safetensors.torch import load_file

from mentor_base.checkpoint import load_policy
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.export import export_run
from mentor_rl.monitors.best import BestPolicy, best_of
from mentor_rl.monitors.fixed_prompts import FixedPrompts
from mentor_rl.recipe import Best


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return toy_policy(tmp_path_factory.mktemp("toy") / "policy")


def fill(best: BestPolicy, step: int, value: float) -> None:
    metrics = {"eval/reward": value}
    if best.improves(metrics):
        with best.writing(step, metrics) as folder:
            folder.mkdir()
            (folder / "weights").write_text(str(step))


def test_larger_or_smaller_is_better_and_a_kill_leaves_one_or_the_other(tmp_path) -> None:
    run = RunFolder.open(tmp_path / "run", {"seed": 0})
    best = BestPolicy(run, Best())
    for step, value in ((0, 0.1), (1, 0.3), (2, float("nan")), (3, 0.3), (4, 0.2)):
        fill(best, step, value)
    assert not best.improves({})
    assert best_of(run.path) == {"step": 1, "metric": "eval/reward", "mode": "max", "value": 0.3, "of": 2}
    (run.path / "best").rename(run.path / ".best.old")  # killed between two renames
    resumed = BestPolicy(run, Best())
    assert (run.path / "best/weights").read_text() == "1"
    assert not resumed.improves({"eval/reward": 0.3})
    assert resumed.improves({"eval/reward": 0.31})
    lower = BestPolicy(RunFolder.open(tmp_path / "lower", {"seed": 0}), Best(mode="min"))
    for step, value in ((0, 0.1), (1, 0.3), (2, 0.05)):
        fill(lower, step, value)
    assert best_of(tmp_path / "lower")["step"] == 2


def test_the_best_policy_of_a_run_loads_and_exports(policy, tmp_path, monkeypatch) -> None:
    """Values are dictated: step 2 is the best. Its weights are those that the run had then."""
    record, values = FixedPrompts.record, {0: 0.2, 1: 0.5, 2: 0.9, 3: 0.4, 4: 0.9}

    def dictated(self, rollout, step):
        return record(self, rollout, step) | {"eval/brightness": values[step]}

    monkeypatch.setattr(FixedPrompts, "record", dictated)
    monitoring = {"every": 1, "prompts": 2, "best": {"metric": "eval/brightness"}}
    run = tmp_path / "run"
    run_recipe(toy_recipe(policy, run, 4, monitoring=monitoring, checkpoints={"every": 2, "keep": 2}))
    assert json.loads((run / "best/best.json").read_text())["step"] == 2
    then = load_file(run / "state/checkpoint-2/model.safetensors")
    best, _ = load_policy(run / "best")
    last, _ = load_policy(run)
    assert all(torch.equal(value, then[key]) for key, value in best.state_dict().items() if key in then)
    assert not all(torch.equal(value, best.state_dict()[key]) for key, value in last.state_dict().items())
    assert best.config.to_dict() | {"_name_or_path": ""} == last.config.to_dict() | {"_name_or_path": ""}
    export_run(run, tmp_path / "export", best=True)
    exported, _ = load_policy(tmp_path / "export")
    assert all(torch.equal(value, best.state_dict()[key]) for key, value in exported.state_dict().items())
    card = (tmp_path / "export/README.md").read_text()
    assert "| optimizer steps | 2, with the best eval/brightness (0.9, max) of 3 evaluations on the fixed" in card
    assert "| eval/brightness | 0.2 | 0.9 |" in card
    assert "Fixed prompts about subjects that training never saw: references, step 0, step 2." in card
    assert "(pictures/step_000002_fixed.png)" in card


def test_none_is_kept_unless_asked_for_and_only_what_is_measured_can_be_asked_for(policy, tmp_path) -> None:
    run: dict[str, Any] = toy_recipe(policy, tmp_path / "run", 1)
    run_recipe(run)
    assert not (tmp_path / "run/best").exists()
    with pytest.raises(UserError, match="expected a run with a best policy"):
        export_run(tmp_path / "run", tmp_path / "export", best=True)
    with pytest.raises(ValidationError, match="unknown 'eval/brightnes'; did you mean 'eval/brightness'"):
        run_recipe(toy_recipe(policy, tmp_path / "other", 1, monitoring={"best": {"metric": "eval/brightnes"}}))
