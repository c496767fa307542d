"""Recipes of a whole chain, stage by stage, and plans of ablations over them; nothing in it is ever trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mentor_rl.ablation.jobs import Plan, plan_jobs
from mentor_rl.ablation.recipe import AblateRecipe
from mentor_rl.cli import main
from mentor_rl.recipe_files import load_recipe

SFT = """\
kind: sft
run: runs/{name}
init: {init}
stage:
  name: {name}
  mixture: {{weights: {{t2i: 0.5, segmentation: 0.3, recovery: 0.2}}}}
  train: {{}}
optimisation: {{lr: 1e-3, steps: 2, batch: 2}}
validation: {{every: 2}}
checkpoints: {{every: 1}}
"""
GRPO = """\
kind: grpo
run: runs/grpo
policy: policy
prompts: {}
algorithm: {group_size: 2, prompts_per_step: 1}
optimisation: {lr: 1e-3, steps: 2}
rewards:
  aesthetic_colours: {use: colour_match, weight: 1.0}
  sharpness: {use: colour_match, weight: 2.0}
  contrast: {use: colour_match}
  watched: {use: colour_match, role: monitor}
checkpoints: {every: 1}
"""
BENCH = """\
kind: evaluate
run: runs/bench
benchmark: emojibench
policies: {stage2: policy}
evaluator: policy
items: 4
seeds: [0]
baselines: false
"""
CHAIN: dict[str, Any] = {
    "stages": {name: {"recipe": f"{name}.yaml"} for name in ("alignment", "instruction", "grpo")},
    "benchmark": {"recipe": "bench.yaml"},
    "seeds": [0, 1],
}


def planner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Makes the plan of an ablation of given sections, in ``folder``, with the recipes of a whole chain."""
    monkeypatch.chdir(folder)
    Path("policy").mkdir()
    Path("alignment.yaml").write_text(SFT.format(name="alignment", init="policy"))
    Path("instruction.yaml").write_text(SFT.format(name="instruction", init="runs/alignment"))
    Path("grpo.yaml").write_text(GRPO)
    Path("bench.yaml").write_text(BENCH)

    def make(**sections: Any) -> Plan:
        file = Path("ablation.yaml")
        file.write_text(yaml.safe_dump({"kind": "ablate", "run": "runs/abl", **CHAIN, **sections}, sort_keys=False))
        recipe = load_recipe(file)
        assert isinstance(recipe, AblateRecipe)
        return plan_jobs(file, recipe, need_inputs=True)

    return make


def mentor(*arguments: str) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code in (0, None)
