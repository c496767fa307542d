"""A step drawn in parts, scored meanwhile, by other engines: the step as drawn in one piece."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_toys import HERE, comparable, run_recipe, toy_policy, toy_recipe

from mentor_base.decode_graph import DecodeEngine
from mentor_base.errors import UserError
from mentor_rl import grpo_run, grpo_setup
from mentor_rl import trainer as trainer_module
from mentor_rl.grpo_setup import check_rollout
from mentor_rl.policy_passes import PolicyPasses
from mentor_rl.recipe import GrpoRecipe
from mentor_rl.rollout import chunks_of

WEIGHTS = "final/model.safetensors"
REWARDS = {
    "brightness": {"use": f"{HERE}:Brightness"},
    "redness": {"use": f"{HERE}:Redness", "options": {"every": 3}},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return toy_policy(tmp_path_factory.mktemp("toy") / "policy")


def step_recipe(policy: Path, run: Path, steps: int = 2, **rollout: Any) -> dict[str, Any]:
    algorithm = {"group_size": 4, "prompts_per_step": 3, "rollout": rollout}
    return toy_recipe(policy, run, steps, algorithm=algorithm, rewards=REWARDS, failure_rate=0.9)


def test_parts_are_whole_groups() -> None:
    uids = [4] * 3 + [5] * 2 + [6] * 3
    assert chunks_of(uids, None) == [slice(0, 8)]
    assert chunks_of(uids, 1) == [slice(0, 3), slice(3, 5), slice(5, 8)]
    assert chunks_of(uids, 2) == [slice(0, 5), slice(5, 8)]
    assert chunks_of(uids, 9) == [slice(0, 8)]


def test_a_step_in_parts_is_the_step_in_one_piece(policy: Path, tmp_path: Path) -> None:
    """Bit for bit; but for gap and ratio, since a log-prob's rounding may depend on how many rows a product has."""
    traces, files = [], []
    for name, rollout in (("whole", {}), ("parts", {"chunk": 1}), ("uneven", {"chunk": 2})):
        lines = run_recipe(step_recipe(policy, tmp_path / name, **rollout))
        assert max(line["gap/max"] for line in lines[1:]) < 1e-3
        traces.append(
            [{k: v for k, v in comparable(line).items() if not k.startswith(("gap/", "ratio/"))} for line in lines]
        )
        files.append((tmp_path / name / WEIGHTS).read_bytes())
    assert traces[0] == traces[1] == traces[2]
    assert files[0] == files[1] == files[2]
    assert 0.0 < float(traces[0][1]["rewards/redness/failed"]) < 0.9


def test_a_part_is_scored_while_the_next_is_drawn(policy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Four parts, each drawn for at least .4 s and scored for .4 s: the step waits for the last one's scores alone."""
    real = trainer_module.roll_out

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.4)
        return real(*args, **kwargs)

    monkeypatch.setattr(trainer_module, "roll_out", slow)
    algorithm = {"group_size": 2, "prompts_per_step": 4, "rollout": {"chunk": 1}}
    rewards = {"slow": {"use": f"{HERE}:Slow", "options": {"seconds": 0.4}}}
    line = run_recipe(toy_recipe(policy, tmp_path / "run", 1, algorithm=algorithm, rewards=rewards))[1]
    assert line["rewards/slow/seconds"] >= 1.6
    assert line["seconds/reward"] < 1.2


def test_static_steps_train_what_the_loop_trains(policy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The engine's own steps, uncompiled, in parts; one shape for all prompts, one set of caches for all steps."""
    lines = run_recipe(step_recipe(policy, tmp_path / "loop"))
    engines = []

    def eager(recipe: GrpoRecipe, policy: Any) -> DecodeEngine:
        engines.append(DecodeEngine("eager", window=8, slots=policy.config.context_length))
        return engines[-1]

    monkeypatch.setattr(grpo_run, "decode_engine", eager)
    static = run_recipe(step_recipe(policy, tmp_path / "static", chunk=1))
    for ours, theirs in zip(static[1:], lines[1:], strict=True):
        for name in ("reward", "kl", "loss", "grad_norm", "diversity"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    assert max(line["gap/max"] for line in static[1:]) < 1e-3
    assert len(engines) == 1
    assert engines[0]._held is not None


@pytest.mark.parametrize(("scale", "logprob", "passes"), [(1.0, "guided", 4), (2.0, "conditional", 6)])
def test_the_samplers_log_probs_stand_in_for_a_pass(
    scale: float, logprob: str, passes: int, policy: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Two rollouts with two updates each: old log-probs cost a pass only where the sampler's are of something else."""
    calls = []
    logprobs = PolicyPasses.logprobs

    def counted(self: Any, model: Any, *args: Any) -> Any:
        calls.append(model)
        return logprobs(self, model, *args)

    monkeypatch.setattr(PolicyPasses, "logprobs", counted)
    guidance = {"scale": scale, "logprob": logprob}
    algorithm = {"group_size": 4, "prompts_per_step": 2, "inner_iterations": 2, "beta": 0.0, "guidance": guidance}
    lines = run_recipe(toy_recipe(policy, tmp_path / "run", 4, algorithm=algorithm))
    assert len(calls) == passes
    assert ["gap/max" in line for line in lines[1:]] == [True, False] * 2
    if logprob == "guided":
        assert max(line.get("gap/max", 0.0) for line in lines) < 1e-3


@pytest.mark.parametrize(
    ("rollout", "pictures", "message"),
    [
        ({"engine": "graph"}, 12, "algorithm.rollout.engine: 'graph' expected a GPU, found none"),
        ({"engine": "compile"}, 6, "'compile' expected whole groups of 4 on each process, found 6 pictures"),
        ({"engine": "compile", "chunk": 2}, 12, "chunk: expected a divisor of the 3 prompts per process"),
    ],
)
def test_engines_that_cannot_draw_the_step(
    rollout: dict[str, Any], pictures: int, message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(grpo_setup.torch.cuda, "is_available", lambda: False)
    recipe = GrpoRecipe.model_validate(step_recipe(tmp_path, tmp_path / "run", **rollout))
    with pytest.raises(UserError, match=message):
        check_rollout(recipe, pictures)
    check_rollout(GrpoRecipe.model_validate(step_recipe(tmp_path, tmp_path / "run", chunk=2)), 6)


def test_rewards_that_depend_on_the_others_are_not_scored_in_parts(
    policy: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(grpo_run, "load_policy", lambda *_: pytest.fail("the policy was read"))
    rewards = {"ranked": {"use": f"{HERE}:Ranked"}}
    algorithm = {"rollout": {"chunk": 1}}
    with pytest.raises(UserError, match=r"algorithm\.rollout\.chunk: expected rewards that .*, found 'ranked'"):
        run_recipe(toy_recipe(policy, tmp_path / "run", algorithm=algorithm, rewards=rewards))
