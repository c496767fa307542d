"""The trainer on a toy: trl's loss is the objective's, gap check, missing rewards, a rising reward, trl's seams."""

import inspect
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grpo_toys import HERE, Brightness, comparable, run_recipe, toy_policy, toy_recipe
from mentor_rewards.aggregate import advantages
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardBatch, RewardEntry, RewardError, RewardFailure, RewardOutput, RewardSpec
from mentor_rewards.server import serving
from trl import GRPOConfig, GRPOTrainer

from mentor_base.checkpoint import load_policy
from mentor_base.errors import UserError
from mentor_rl import grpo_run
from mentor_rl import trainer as trainer_module
from mentor_rl.grpo_run import quiet_libraries
from mentor_rl.grpo_setup import pictures_per_process
from mentor_rl.objective import group_advantages, grpo_loss
from mentor_rl.recipe import GrpoRecipe
from mentor_rl.trainer import MentorGRPOTrainer
from mentor_rl.trl_arguments import FORCED, check_arguments

sys.path.append(str(Path(__file__).parents[1] / "rewards"))
from judge_server_stub import JudgeStub, in_turn, says

TWO_REWARDS = {
    "brightness": {"use": f"{HERE}:Brightness", "weight": 0.5},
    "redness": {"use": f"{HERE}:Redness", "scale": 10.0, "clip": [-2.0, 0.3]},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return toy_policy(tmp_path_factory.mktemp("toy") / "policy")


@pytest.fixture
def seen(monkeypatch) -> dict[str, list[Any]]:
    """What went through the seams: log-probs, inputs and losses of update passes, scores, advantages."""
    found: dict[str, list[Any]] = {"logp": [], "update": [], "gradient": [], "scores": [], "advantages": []}
    seam = MentorGRPOTrainer._get_per_token_logps_and_entropies
    compute, generate, score = GRPOTrainer._compute_loss, GRPOTrainer._generate_and_score_completions, Composite.score

    def watched_seam(self, *args, **kwargs):
        result = seam(self, *args, **kwargs)
        found["logp"].append(result[0])
        return result

    def watched_loss(self, model, inputs):
        loss = compute(self, model, inputs)
        found["update"].append((found["logp"][-1], inputs, loss * self.current_gradient_accumulation_steps))
        found["gradient"].append(torch.autograd.grad(found["update"][-1][2], found["logp"][-1], retain_graph=True)[0])
        return loss

    def watched_generation(self, inputs):
        result = generate(self, inputs)
        found["advantages"].append(result["advantages"])
        return result

    def watched_score(self, batch, tolerate=False):
        found["scores"].append((list(batch.group_ids), score(self, batch, tolerate)))
        return found["scores"][-1][1]

    monkeypatch.setattr(MentorGRPOTrainer, "_get_per_token_logps_and_entropies", watched_seam)
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", watched_loss)
    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", watched_generation)
    monkeypatch.setattr(Composite, "score", watched_score)
    return found


@pytest.mark.parametrize(
    "algorithm",
    [
        {},
        {"loss": "bnpo", "beta": 0.0},
        {"loss": "dr_grpo", "aggregation": "sum_then_normalize", "inner_iterations": 2},
        {"loss": "dapo", "micro_batch": 4, "aggregation": "sum_then_normalize", "scale_rewards": "batch"},
        {"ratio": "sequence", "inner_iterations": 2, "epsilon": 1e-3, "epsilon_high": 2e-3, "micro_batch": 2},
        {"loss": "dapo", "inner_iterations": 2, "epsilon": 0.01, "beta": 0.5, "micro_batch": 4},
        {"aggregation": "sum_then_normalize", "scale_rewards": "none", "guidance": {"scale": 2.0}, "temperature": 0.8},
        {"train": {"text_encoder": True}, "inner_iterations": 2},
    ],
    ids=lambda algorithm: ",".join(f"{key}={value}" for key, value in algorithm.items()) or "defaults",
)
def test_trls_loss_is_the_objective(policy, tmp_path, seen, algorithm) -> None:
    """Value and gradient, on a policy that has moved away from its reference, with two rewards that miss scores; and
    what is logged beside them.
    """
    rewards = {**TWO_REWARDS, "redness": {**TWO_REWARDS["redness"], "options": {"every": 3}}}
    parts = {key: value for key, value in algorithm.items() if key == "train"}
    algorithm = {key: value for key, value in algorithm.items() if key != "train"}
    values = toy_recipe(policy, tmp_path / "run", 4, rewards=rewards, algorithm=algorithm, failure_rate=1.0, **parts)
    lines = run_recipe(values)[1:]
    settings = GrpoRecipe.model_validate(values).algorithm
    passes = 8 // (settings.micro_batch or 8)
    assert len(seen["update"]) == 4 * passes
    logged = []
    for (logp, inputs, loss), gradient in zip(seen["update"], seen["gradient"], strict=True):
        expected = grpo_loss(
            logp,
            inputs.get("old_per_token_logps", logp.detach()),
            inputs.get("ref_per_token_logps"),
            inputs["advantages"],
            settings,
        )
        torch.testing.assert_close(loss, expected.loss, atol=1e-6, rtol=0)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.loss, logp)[0], atol=1e-6, rtol=0)
        logged.append([value.item() for value in expected])
    for line, (loss, kl, clipped) in zip(lines, np.array(logged).reshape(4, passes, 3).mean(1), strict=True):
        found = line["loss"], line.get("kl", 0.0), line["clip_share"]
        assert found == pytest.approx((loss, kl, clipped), abs=2e-6)
    assert ("kl" in lines[0]) == (settings.beta > 0)
    assert lines[-1]["clip_share"] > 0 or settings.epsilon == 0.2
    rollouts = [scores for ids, scores in seen["scores"] if len(ids) == 8]
    assert len(rollouts) == 4 // settings.inner_iterations
    assert any(None in scores.raw["redness"] for scores in rollouts)
    for scores, found in zip(rollouts, seen["advantages"], strict=True):
        matrix = torch.from_numpy(scores.matrix())
        weights = torch.tensor([0.5, 1.0], dtype=torch.float64)
        expected = group_advantages(matrix, weights, 4, settings.aggregation, settings.scale_rewards)
        torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=2e-4)


def test_a_spread_floor_reaches_the_advantages(policy, tmp_path, seen) -> None:
    """Redness misses scores and is held down by its floor; trl's advantages are aggregate.py's."""
    rewards = {
        "brightness": TWO_REWARDS["brightness"],
        "redness": {**TWO_REWARDS["redness"], "spread_floor": 2.0, "options": {"every": 3}},
    }
    run_recipe(toy_recipe(policy, tmp_path / "run", 2, rewards=rewards, failure_rate=1.0))
    rollouts = [(ids, scores.matrix()) for ids, scores in seen["scores"] if len(ids) == 8]
    for (ids, matrix), found in zip(rollouts, seen["advantages"], strict=True):
        expected = advantages(matrix, [0.5, 1.0], ids, floors_R=[0.0, 2.0])
        assert found.tolist() == pytest.approx(expected, abs=2e-4)
        assert np.abs(expected - advantages(matrix, [0.5, 1.0], ids)).max() > 0.1


def test_each_task_is_rewarded_by_its_own_rewards_and_watched(policy, tmp_path, seen) -> None:
    """Text-to-image without the reward of subject-driven prompts; every entry logs all of its statistics."""
    rewards = {
        **TWO_REWARDS,
        "redness": {**TWO_REWARDS["redness"], "tasks": ["subject"], "on_missing": "stop"},
        "watched": {"use": f"{HERE}:Brightness", "role": "monitor"},
    }
    prompts = {"weights": {"t2i": 1.0, "subject": 1.0}}
    monitoring = {"window": 3, "significance": 0.2}
    lines = run_recipe(toy_recipe(policy, tmp_path / "run", 4, rewards=rewards, prompts=prompts, monitoring=monitoring))
    tasks = set()
    for ids, scores in seen["scores"]:
        for row in range(len(ids)):
            applies = scores.raw["redness"][row] is not None
            assert applies or scores.reasons["redness"][row] == "does not apply: task 't2i' is not in tasks: [subject]"
            tasks.add(applies)
    assert tasks == {True, False}
    statistics = {"mean", "std", "group_std", "missing", "failed", "saturated", "seconds"}
    for line in lines[1:]:
        for name in rewards:
            assert {key.split("/")[2] for key in line if key.startswith(f"rewards/{name}/")} == statistics
        assert line["rewards/redness/failed"] == 0.0
        assert 0.0 < line["diversity_pixels"] < 1.0
        assert ("copies/share" in line) == (line["rewards/redness/missing"] < 1.0)
        assert ("hacking/watched" in line) == (line["step"] >= 3)


def test_reward_rises_on_prompts_never_trained_on(policy, tmp_path) -> None:
    values = toy_recipe(
        policy,
        tmp_path / "run",
        steps=30,
        algorithm={"group_size": 8, "prompts_per_step": 2, "beta": 0.005},
        optimisation={"lr": 5e-3},
        rewards={"redness": {"use": f"{HERE}:Redness"}},
        monitoring={"every": 15, "prompts": 16},
    )
    lines = run_recipe(values)
    held_out = [line["eval/redness"] for line in lines if "eval/redness" in line]
    spread = lines[1]["rewards/redness/std"]
    assert held_out[-1] > held_out[0] + 2 * spread
    assert [line["step"] for line in lines if "eval/reward" in line] == [0, 15, 30]
    assert lines[-1]["kl"] > 0.0
    assert max(line["gap/max"] for line in lines[1:]) < 1e-3
    tuned, _ = load_policy(tmp_path / "run")
    start, _ = load_policy(policy)
    tuned.config.name_or_path = start.config.name_or_path
    assert tuned.config.to_dict() == start.config.to_dict()
    frozen = {key for key, value in start.state_dict().items() if torch.equal(value, tuned.state_dict()[key])}
    assert {key.split(".")[0] for key in frozen} >= {"vq", "encoder"}
    assert not any(key.startswith("decoder.blocks") for key in frozen)


class Noisy(Brightness):
    """Brightness with noise from all generators."""

    spec = RewardSpec("noisy", "1", deterministic=False)

    def score(self, batch: RewardBatch) -> RewardOutput:
        noise = [random.random() + np.random.rand() + torch.rand(()).item() for _ in range(len(batch))]
        scores = super().score(batch).scores
        return RewardOutput([(score or 0.0) + each for score, each in zip(scores, noise, strict=True)])


def test_watching_does_not_change_the_training(policy, tmp_path) -> None:
    """A reward that draws random numbers, watched at every step or at the ends only: the same training metrics."""
    traces = []
    rewards = {"noisy": {"use": f"{Path(__file__)}:Noisy"}}
    for every in (1, 100):
        monitoring = {"every": every, "prompts": 3}
        values = toy_recipe(policy, tmp_path / f"run{every}", 3, monitoring=monitoring, rewards=rewards)
        lines = run_recipe(values)
        traces.append([{k: v for k, v in comparable(x).items() if not k.startswith("eval/")} for x in lines])
    assert traces[0] == traces[1]


def test_prompts_without_answers_train(policy, tmp_path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a fox\na red house\na bus\n", encoding="utf-8")
    prompts = {"data": {"source": "prompts", "train": str(captions), "val": str(captions)}, "weights": {"t2i": 1.0}}
    monitoring = {"every": 100, "prompts": 2, "split": "val"}
    lines = run_recipe(toy_recipe(policy, tmp_path / "run", 1, prompts=prompts, monitoring=monitoring))
    assert 0 < lines[1]["rewards/brightness/mean"] < 1
    assert not any("copies" in name for name in lines[1]), "nothing says how like a reference a picture may be"


def test_gap_check_fires_when_sampler_and_trainer_disagree(policy, tmp_path, monkeypatch) -> None:
    real = trainer_module.roll_out

    def hotter(policy, store, uids, members, sampling, *rest, **options):
        return real(policy, store, uids, members, sampling.model_copy(update={"temperature": 1.1}), *rest, **options)

    monkeypatch.setattr(trainer_module, "roll_out", hotter)
    with pytest.raises(UserError, match="step 0: the trainer's log-probs of the drawn tokens differ"):
        run_recipe(toy_recipe(policy, tmp_path / "run"))


def test_conditional_log_probs_under_guidance_warn_and_show_their_gap(policy, tmp_path) -> None:
    algorithm = {"guidance": {"scale": 3.0, "logprob": "conditional"}}
    with pytest.warns(UserWarning, match="not those of the distribution that is sampled"):
        lines = run_recipe(toy_recipe(policy, tmp_path / "run", 1, algorithm=algorithm))
    assert lines[1]["gap/mean"] > 1e-2


def test_a_failing_reward_stops_the_run_with_a_state(policy, tmp_path) -> None:
    rewards = {**TWO_REWARDS, "silent": {"use": f"{HERE}:Silent", "options": {"from_step": 2}}}
    values = toy_recipe(policy, tmp_path / "run", 4, rewards=rewards)
    with pytest.raises(RewardFailure, match="reward 'silent': 8 of 8 pictures could not be scored"):
        run_recipe(values)
    assert (tmp_path / "run/state/checkpoint-2/complete.json").exists()


def test_missing_scores_are_counted_and_never_numbers(policy, tmp_path) -> None:
    rewards = {**TWO_REWARDS, "watched": {"use": f"{HERE}:Silent", "role": "monitor"}}
    lines = run_recipe(toy_recipe(policy, tmp_path / "run", 2, rewards=rewards, failure_rate=1.0))
    assert lines[1]["rewards/watched/missing"] == 1.0
    assert repr(lines[1]["rewards/watched/mean"]) == "nan"
    assert "eval/watched" not in lines[0]
    assert lines[1]["reward"] == pytest.approx(
        0.5 * lines[1]["rewards/brightness/mean"] + min(0.3, 10 * lines[1]["rewards/redness/mean"]), abs=0.3
    )


def test_the_reference_is_frozen_and_in_no_state(policy, tmp_path, monkeypatch) -> None:
    held: dict[str, Any] = {}
    finish = grpo_run.finish

    def watched(trainer, processor, run):
        held["reference"] = {key: value.clone() for key, value in trainer.ref_model.state_dict().items()}
        held["shared"] = trainer.ref_model.vq is trainer.model.vq
        finish(trainer, processor, run)

    monkeypatch.setattr(grpo_run, "finish", watched)
    run_recipe(toy_recipe(policy, tmp_path / "run", 2, train={"connector": True}))
    start = load_policy(policy)[0].state_dict()
    assert all(torch.equal(value, held["reference"][key]) for key, value in start.items())
    assert held["shared"]
    written = json.loads((tmp_path / "run/state/checkpoint-2/complete.json").read_text())["files"]
    assert written["model.safetensors"] < 1.2 * (policy / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": {"micro_batch": 3}},
            "micro_batch: expected a divisor of group_size x prompts_per_step = 8, found 3",
        ),
        (
            {"algorithm": {"inner_iterations": 3}},
            "checkpoints.every: expected a multiple of algorithm.inner_it",
        ),
        ({"algorithm": {"scale_rewards": "none"}}, "algorithm.scale_rewards: expected 'group'"),
        (
            {"prompts": {"data": {"source": "prompts", "train": "captions.txt"}, "weights": {"t2i": 1.0}}},
            r"monitoring.split: expected a split that prompts.data names \(train\), found 'unseen_subjects'",
        ),
        ({"rewards": {"brightness": {"use": f"{HERE}:Brightness", "role": "monitor"}}}, "found monitors only"),
        ({"monitoring": {"window": 5}}, "monitoring.window: expected more steps for significance 0.001, found 5"),
        (
            {
                "algorithm": {"aggregation": "sum_then_normalize"},
                "rewards": {"brightness": {"use": f"{HERE}:Brightness", "spread_floor": 0.1}},
            },
            "rewards.brightness.spread_floor: expected 0 with aggregation 'sum_then_normalize'",
        ),
    ],
)
def test_recipes_that_do_not_add_up(policy, tmp_path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        run_recipe(toy_recipe(policy, tmp_path / "run", **changes))


def test_a_dead_judge_is_noticed_before_the_policy_is_read(policy, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(grpo_run, "load_policy", lambda *_: pytest.fail("the policy was read"))
    judge = {"use": "qwen_vl_t2i", "options": {"url": "http://127.0.0.1:1/v1", "model": "judge"}}
    with pytest.raises(
        RewardError, match=r"reward 'vlm': the judge at http://127.0.0.1:1/v1: expected .*no connection"
    ):
        run_recipe(toy_recipe(policy, tmp_path / "run", rewards={"vlm": judge}))


def test_a_served_rewards_needs_are_known_before_the_policy_is_read(policy, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(grpo_run, "load_policy", lambda *_: pytest.fail("the policy was read"))
    with serving({"read": RewardEntry(use="shape_match")}) as url:
        served = {"use": "remote", "options": {"url": url, "reward": "read"}}
        with pytest.raises(RewardError, match=r"reward 'far' needs metadata.objects; the prompts have"):
            run_recipe(toy_recipe(policy, tmp_path / "run", rewards={"far": served}))


def test_a_run_asks_its_judges_server_once_before_it_scores(policy, tmp_path, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise InterruptedError("policy and rewards are loaded")

    monkeypatch.setattr(grpo_run, "build_trainer", stop)
    with JudgeStub(in_turn(says("not asked"))) as stub:
        judge = {"use": "qwen_vl_t2i", "options": {"url": stub.url, "model": "judge"}}
        with pytest.raises(InterruptedError):
            run_recipe(toy_recipe(policy, tmp_path / "run", rewards={"vlm": judge}))
    assert (stub.listings, stub.bodies) == (1, [])


def test_pictures_that_processes_cannot_share_evenly(policy, tmp_path) -> None:
    recipe = GrpoRecipe.model_validate(toy_recipe(policy, tmp_path / "run", algorithm={"micro_batch": 4}))
    assert pictures_per_process(recipe, 2) == 4
    with pytest.raises(UserError, match="multiple of micro_batch x processes = 4 x 3, found 8"):
        pictures_per_process(recipe, 3)


@pytest.mark.parametrize("name", [*FORCED, "max_completion_length"])
def test_settings_of_trl_that_make_no_sense_are_refused(tmp_path, name) -> None:
    quiet_libraries()
    settings = {key: wanted for key, (wanted, _) in FORCED.items()}
    args = GRPOConfig(str(tmp_path), bf16=False, max_completion_length=16, report_to="none", **settings)
    check_arguments(args, 16)
    numbers = {"top_k": 50, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2, "max_completion_length": 512}
    value = numbers.get(name, True)
    setattr(args, name, value)
    with pytest.raises(UserError, match=f"GRPOConfig.{name}: expected .*, found {value}: "):
        check_arguments(args, 16)


def test_the_seams_exist_in_the_installed_trl() -> None:
    """What trainer.py relies on; a release that moves a seam fails here first."""
    start = inspect.signature(GRPOTrainer.__init__).parameters
    assert {"model", "reward_funcs", "args", "train_dataset", "processing_class", "rollout_func"} <= start.keys()
    seam = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    assert list(seam)[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert {"batch_size", "compute_entropy"} <= seam.keys()
    assert list(inspect.signature(GRPOTrainer._generate_and_score_completions).parameters) == ["self", "inputs"]
    assert list(inspect.signature(GRPOTrainer._compute_loss).parameters) == ["self", "model", "inputs"]
    assert list(inspect.signature(GRPOTrainer.log).parameters) == ["self", "logs", "start_time"]
    assert GRPOConfig.__dataclass_fields__.keys() >= FORCED.keys()
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert "self._generate(prompts)" in source
    assert "rollout_func" in inspect.getsource(GRPOTrainer._generate)
