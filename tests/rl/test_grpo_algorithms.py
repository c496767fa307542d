"""Whole trainers with settings that reach beyond the loss: moving references, bonuses, samplers of another precision,
guidance per prompt; and the recipes that are refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_toys import HERE, Brightness, comparable, run_recipe, toy_policy, toy_recipe
from mentor_rewards.contract import RewardError, RewardSpec
from safetensors.torch import load_file

from mentor_base.checkpoint import load_policy
from mentor_base.errors import UserError
from mentor_rl import grpo_run
from mentor_rl import trainer as trainer_module
from mentor_rl.algorithm import GrpoAlgorithm
from mentor_rl.grpo_setup import pictures_per_process
from mentor_rl.launch import check_launch
from mentor_rl.monitors.gap import Gap
from mentor_rl.objective import importance_weights
from mentor_rl.recipe import GrpoRecipe
from mentor_rl.recipe_names import check_names
from mentor_rl.rollout import REFERENCE, guidance_scales

MOVING = {"reference": {"every": 2, "mix": 0.5}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return toy_policy(tmp_path_factory.mktemp("toy") / "policy")


@pytest.fixture
def ended(monkeypatch) -> dict[str, Any]:
    """The trainer at the end of its run."""
    held: dict[str, Any] = {}
    finish = grpo_run.finish

    def watched(trainer, *rest):
        held["trainer"] = trainer
        finish(trainer, *rest)

    monkeypatch.setattr(grpo_run, "finish", watched)
    return held


def moving_recipe(policy: Path, run: Path, **changes: Any) -> dict[str, Any]:
    return toy_recipe(policy, run, 4, algorithm=MOVING, checkpoints={"every": 2}, train={"connector": True}, **changes)


def test_a_moving_reference_is_a_mean_of_policies(policy, tmp_path, ended) -> None:
    """Two moves: start, states of steps 2 and 4. The tokenizer that both share, and all that is frozen, stay."""
    run_recipe(moving_recipe(policy, tmp_path / "run"))
    start = load_policy(policy)[0].state_dict()
    states = [load_file(tmp_path / f"run/state/checkpoint-{step}/model.safetensors") for step in (2, 4)]
    reference = ended["trainer"].ref_model.state_dict()
    moved = set(ended["trainer"].mover.pairs)
    assert any(name.startswith("encoder.connector") for name in moved)
    assert not any(name.startswith(("vq", "encoder.text")) for name in moved)
    for name, value in start.items():
        if name in moved:
            expected = 0.25 * value + 0.25 * states[0][name] + 0.5 * states[1][name]
            torch.testing.assert_close(reference[name], expected, atol=1e-6, rtol=0)
        else:
            assert torch.equal(reference[name], value), name
    written = load_file(tmp_path / "run/state/checkpoint-4/reference.safetensors")
    assert all(torch.equal(value, reference[name]) for name, value in written.items())


def test_prefixes_of_a_reference_that_moved_are_dropped(policy, tmp_path, monkeypatch) -> None:
    held = []
    step_end = trainer_module.ReferenceMover.on_step_end

    def watched(self, args, state, control, **kwargs):
        cached = self.forget.args, self.forget.func.__self__._prefixes
        before = len(cached[1].get(REFERENCE, {}))
        step_end(self, args, state, control, **kwargs)
        held.append((before, len(cached[1].get(REFERENCE, {}))))

    monkeypatch.setattr(trainer_module.ReferenceMover, "on_step_end", watched)
    run_recipe(moving_recipe(policy, tmp_path / "run"))
    assert held == [(2, 2), (2, 0), (2, 2), (2, 0)]


def test_what_moves_resumes_bit_for_bit(policy, tmp_path, monkeypatch) -> None:
    """The reference, the weight of an entropy bonus, guidance scales of prompts, all at once."""
    entropy = {"bonus": 0.1, "target": 99.0, "step": 0.03}
    algorithm = {**MOVING, "entropy": entropy, "guidance": {"scale": [1.0, 3.0]}}

    def recipe(run: Path) -> dict[str, Any]:
        return toy_recipe(policy, run, 4, algorithm=algorithm, checkpoints={"every": 2})

    whole = run_recipe(recipe(tmp_path / "whole"))
    monkeypatch.setattr(grpo_run, "finish", lambda *_: None)
    run_recipe(recipe(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run/state/checkpoint-4")
    monkeypatch.undo()
    again = run_recipe(recipe(tmp_path / "run"))
    assert [comparable(line) for line in again] == [comparable(line) for line in whole]
    files = [tmp_path / name / "final/model.safetensors" for name in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_entropy_bonus_raises_the_entropy_and_its_weight_follows(policy, tmp_path) -> None:
    """No reward to speak of: with a bonus the entropy ends higher, and a target moves its weight."""
    rewards = {"brightness": {"use": f"{HERE}:Brightness", "weight": 1e-9}}
    traces = {}
    for name, entropy in {"none": {}, "bonus": {"bonus": 0.5, "target": 9.0}}.items():
        algorithm = {"beta": 0.0, "aggregation": "sum_then_normalize", "scale_rewards": "none", "entropy": entropy}
        recipe = toy_recipe(policy, tmp_path / name, 4, rewards=rewards, algorithm=algorithm)
        traces[name] = run_recipe(recipe)[1:]
    assert traces["bonus"][-1]["entropy"] > traces["none"][-1]["entropy"] + 0.02
    weights = [line["entropy_coefficient"] for line in traces["bonus"]]
    assert weights == pytest.approx([0.505, 0.51, 0.515, 0.52])


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_sampler_of_another_precision_is_corrected(policy, tmp_path, monkeypatch, level) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    compute = trainer_module.GRPOTrainer._compute_loss

    def watched(self, model, inputs):
        rows = inputs["prompt_ids"][:, 1]
        seen.append((inputs["advantages"], gaps[-1][rows], self._rollout.sampler_logp_NL[rows]))
        return compute(self, model, inputs)

    gaps: list[torch.Tensor] = []
    watch = trainer_module.MentorGRPOTrainer._watch_gap
    monkeypatch.setattr(trainer_module.GRPOTrainer, "_compute_loss", watched)
    monkeypatch.setattr(
        trainer_module.MentorGRPOTrainer, "_watch_gap", lambda s, logp, rows: (gaps.append(logp), watch(s, logp, rows))
    )
    algorithm = {"sampler_dtype": "bfloat16", "importance": {"cap": 1.01, "level": level}}
    lines = run_recipe(toy_recipe(policy, tmp_path / "run", 2, algorithm=algorithm))
    assert 1e-5 < lines[1]["gap/mean"] < lines[1]["gap/p90"] < lines[1]["gap/p99"] <= lines[1]["gap/max"] < 0.2
    assert lines[1]["ratio/max"] > 1.0
    assert lines[1]["ratio/mean"] == pytest.approx(1.0, abs=0.02)
    assert 0.0 < lines[1]["importance/capped"] < 1.0
    assert len(gaps) == 2, "one pass a rollout finds them"
    advantages_NX, logp_NL, sampler_NL = seen[0]
    assert advantages_NX.shape == (8, 16 if level == "token" else 1)
    unweighted_NX = advantages_NX / importance_weights(logp_NL, sampler_NL, 1.01, level)
    torch.testing.assert_close(unweighted_NX, unweighted_NX[:, :1].expand_as(unweighted_NX))
    assert unweighted_NX[:, 0].mean().abs() < 1e-5, "advantages of whole groups"
    plain = run_recipe(toy_recipe(policy, tmp_path / "plain", 1))
    assert plain[1]["gap/max"] < 1e-4
    assert plain[1]["ratio/max"] == pytest.approx(1.0, abs=1e-4)


def test_weights_are_capped_without_gradient() -> None:
    logp_NL = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]], requires_grad=True)
    sampler_NL = torch.tensor([[-1.0, -2.1], [-2.0, -2.0]])
    tokens = importance_weights(logp_NL, sampler_NL, 2.0, "token")
    assert tokens.tolist() == [pytest.approx([1.0, 1.10517], abs=1e-4), [2.0, 2.0]]
    sequences = importance_weights(logp_NL, sampler_NL, 100.0, "sequence")
    assert sequences.flatten().tolist() == pytest.approx([1.10517, 7.38906], abs=1e-4)
    assert not tokens.requires_grad


def test_gap_metrics_by_hand() -> None:
    """Two passes, sizes .0, .1, .3 and .2 nats; then nothing is left to say."""
    gap, rows = Gap(), torch.zeros(1, 2, dtype=torch.float64)
    gap.record(rows + torch.tensor([[0.0, 0.1]]), rows)
    gap.record(rows + torch.tensor([[-0.3, 0.2]]), rows)
    found = gap.metrics(lambda gathered: gathered)
    assert found["gap/mean"] == pytest.approx(0.15)
    assert found["gap/max"] == pytest.approx(0.3)
    assert found["gap/p50"] == pytest.approx(0.15)
    assert found["ratio/max"] == pytest.approx(2.718281828**0.2)
    assert gap.metrics(lambda gathered: gathered) == {}


def test_each_prompt_has_a_guidance_scale_of_its_own(policy, tmp_path) -> None:
    """A function of (seed, uid); sampler and trainer use the same one, in any order and split."""
    scales_N = guidance_scales((1.0, 4.0), [3, 3, 9, 3], seed=0)
    assert scales_N[0] == scales_N[1] == scales_N[3] != scales_N[2]
    assert guidance_scales((1.0, 4.0), [9], seed=0) == scales_N[2]
    assert guidance_scales((1.0, 4.0), [9], seed=1) != scales_N[2]
    many = guidance_scales((1.0, 4.0), range(500), seed=0)
    assert 1.0 <= many.min() < 1.1
    assert 3.9 < many.max() <= 4.0
    algorithm = {"guidance": {"scale": [1.0, 4.0]}, "micro_batch": 2, "inner_iterations": 2}
    lines = run_recipe(toy_recipe(policy, tmp_path / "run", 2, algorithm=algorithm))
    assert 0.0 < lines[1]["gap/max"] < 1e-3
    assert 1.0 < lines[1]["guidance/mean"] < 4.0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"guidance": {"scale": 0.0}}, "guidance.scale: expected above 0, found 0: at 0 pictures do not depend"),
    ({"guidance": {"scale": -1.0}}, "guidance.scale: expected above 0, found -1"),
    ({"guidance": {"scale": [3.0, 1.0]}}, r"guidance.scale: expected \[low, high\] with low < high, found \[3, 1\]"),
    ({"delta": 1.2}, r"delta: expected more than 1 \+ epsilon_high = 1.2, found 1.2"),
    ({"delta": 4.0, "loss": "sapo"}, "delta: expected a loss that clips .*, found loss 'sapo'"),
    ({"epsilon": 0.1, "loss": "cispo", "epsilon_high": 5.0}, "epsilon: expected a loss that clips"),
    ({"loss": "cispo"}, "epsilon_high: expected the largest ratio, at least 1, with loss 'cispo'.*, found none"),
    ({"loss": "vespo", "epsilon_high": 0.3}, "epsilon_high: expected a loss with an upper bound, found 'vespo'"),
    ({"sapo": {}}, "sapo: expected loss 'sapo', whose parameters these are, found loss 'grpo'"),
    ({"vespo": {}, "loss": "sapo"}, "vespo: expected loss 'vespo', whose parameters these are, found loss 'sapo'"),
    ({"loss": "vespo", "ratio": "sequence"}, "ratio: expected 'token' with loss 'vespo'"),
    ({"loss": "luspo"}, "ratio: expected 'sequence' with loss 'luspo'"),
    ({"off_policy_threshold": 0.1}, "off_policy_threshold: expected inner_iterations above 1, found 1"),
    ({"beta": 0.0, "reference": {"every": 5}}, "reference: expected beta above 0, found 0"),
    ({"beta": 0.0, "kl_bias_correction": False}, "kl_bias_correction: expected beta above 0"),
    ({"entropy": {"step": 0.1}}, "entropy.step: expected a target"),
    ({"entropy": {"bonus": 2.0, "target": 1.0}}, "entropy.bonus: expected between low and high = 0 and 1, found 2"),
    (
        {"importance": {}, "guidance": {"scale": 3.0, "logprob": "conditional"}},
        "importance: expected guidance.logprob 'guided', found 'conditional'",
    ),
]


@pytest.mark.parametrize(("algorithm", "message"), REFUSED)
def test_contradictions_are_refused_in_one_line(tmp_path, algorithm, message) -> None:
    """Before a policy is looked for: there is none."""
    recipe = GrpoRecipe.model_validate(toy_recipe(tmp_path / "nowhere", tmp_path / "run", algorithm=algorithm))
    with pytest.raises(UserError, match=f"^algorithm.{message}") as caught:
        pictures_per_process(recipe, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "values", "algorithm", "message"),
    [
        ("train", {"lora": {"rank": 2}}, MOVING, "algorithm.reference: expected a run without train.lora"),
        (
            "optimisation",
            {"precision": "bf16"},
            {"sampler_dtype": "bfloat16"},
            "algorithm.sampler_dtype: expected none",
        ),
        ("optimisation", {}, {"sampler_dtype": "bfloat16"}, "algorithm.importance: expected with sampler_dtype"),
    ],
)
def test_contradictions_between_sections(tmp_path, section, values, algorithm, message) -> None:
    changes = {section: values, "algorithm": algorithm}
    recipe = GrpoRecipe.model_validate(toy_recipe(tmp_path / "nowhere", tmp_path / "run", **changes))
    with pytest.raises(UserError, match=message):
        pictures_per_process(recipe, 1)


@pytest.mark.parametrize("engine", ["DeepSpeed", "FSDP"])
def test_a_reference_that_moves_wants_whole_weights(tmp_path, monkeypatch, engine) -> None:
    """Before a policy is looked for, as accelerate launch says it."""
    recipe = GrpoRecipe.model_validate(toy_recipe(tmp_path / "nowhere", tmp_path / "run", algorithm=MOVING))
    check_launch(recipe, "recipe.yaml", 1)
    monkeypatch.setenv(f"ACCELERATE_USE_{engine.upper()}", "true")
    line = f"recipe.yaml: algorithm.reference: expected processes that hold whole weights .DDP., found {engine}"
    with pytest.raises(UserError, match=line):
        check_launch(recipe, "recipe.yaml", 1)
    with pytest.raises(UserError, match=r"^algorithm\.reference: expected processes"):
        run_recipe(toy_recipe(tmp_path / "nowhere", tmp_path / "run", algorithm=MOVING))
    check_launch(GrpoRecipe.model_validate(toy_recipe(tmp_path / "nowhere", tmp_path / "run")), "recipe.yaml", 1)


def test_contradictions_are_refused_before_a_run_folder_is_made(policy, tmp_path) -> None:
    recipe = GrpoRecipe.model_validate(toy_recipe(policy, tmp_path / "run", algorithm={"loss": "luspo"}))
    with pytest.raises(UserError, match=r"^recipe.yaml: algorithm.ratio: expected 'sequence'"):
        check_names(recipe, "recipe.yaml")


class Labelled(Brightness):
    """Brightness of what has a label."""

    spec = RewardSpec("labelled", "1", metadata=frozenset({"label"}))


def test_a_reward_without_its_column_is_refused_before_a_weight_is_read(tmp_path) -> None:
    """There is no policy to load."""
    rewards = {"labelled": {"use": f"{Path(__file__)}:Labelled"}}
    with pytest.raises(RewardError, match=r"reward 'labelled' needs metadata.label; the prompts have "):
        run_recipe(toy_recipe(tmp_path / "nowhere", tmp_path / "run", rewards=rewards))


def test_defaults_are_as_they_were() -> None:
    """What shipped recipes rely on."""
    plain = GrpoAlgorithm()
    assert (plain.loss, plain.ratio, plain.epsilon, plain.beta, plain.guidance.scale) == (
        "grpo",
        "token",
        0.2,
        0.02,
        1.0,
    )
