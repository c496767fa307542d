"""Benchmarks: what is compared is the same, what is counted is counted right, and what is written can be read."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_toys import toy_recipe
from typer.testing import CliRunner

from mentor_base.config import MentorConfig
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.bench import grpo, grpo_against, rollout
from mentor_rl.bench.bandwidth import RolloutShape, decoder_weights, rollout_bytes, step_bytes
from mentor_rl.bench.decoder_policy import DecoderPolicy, plain_config, random_policy, random_prefix
from mentor_rl.bench.grpo import cost_split
from mentor_rl.bench.machine import PeakMemory, Spread, copy_bandwidth, product_rate
from mentor_rl.bench.record import FIELDS, Record, page, table
from mentor_rl.bench.reference_sampler import ReferenceSampler, reference_draw
from mentor_rl.cli import app
from mentor_rl.recipe import GrpoRecipe

CPU = torch.device("cpu")
STEP_LIMITS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "step_limits.py"))
SMALL = rollout.RolloutSettings("tiny", 4, 2, 7.5, 16, 12, "float32", against="reference", repeats=2)


def small_policy(dtype: torch.dtype = torch.float32) -> DecoderPolicy:
    return random_policy(plain_config("tiny", 16, 12), CPU, dtype, seed=0)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("padded", [False, True])
def test_both_ways_choose_the_same_tokens(padded: bool, guidance: float) -> None:
    """``padded``: prompts of different lengths; else of one, as text-only prompts of a bucket."""
    policy, settings = small_policy(), rollout.RolloutSettings("tiny", 6, 3, guidance, 16, 12, "float32")
    prefix = random_prefix(policy.config, 3, 12, CPU, torch.float32, seed=1)
    if not padded:
        prefix = prefix._replace(mask_KT=torch.ones_like(prefix.mask_KT))  # and zeros as features where padding was
    assert bool(prefix.mask_KT.all()) != padded
    ours, reference = rollout.Ours(policy, prefix, settings), rollout.Reference(policy, prefix, settings)
    found = rollout._first_tokens(ours, 16, engine=None)
    sampler = ReferenceSampler(policy.decoder, guidance)
    expected = reference_draw(sampler, reference.prefix_N, 16)
    assert torch.equal(found, expected)
    assert len(found.unique()) > 8  # the choice is not one token for ever
    assert torch.equal(expected[0], expected[1])  # greedy members of a group agree,
    assert not torch.equal(expected[0], expected[2])  # prompts do not
    logp = torch.stack(sampler.probabilities, 1).log().gather(2, expected[:, :, None])[:, :, 0]
    assert logp.isfinite().all()


def test_what_differs_is_told_with_its_margin() -> None:
    expected, found = torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[0, 1, 2], [0, 2, 0]])
    probabilities = [torch.full((2, 3), 1 / 3), torch.tensor([[0.2, 0.6, 0.2], [0.1, 0.6, 0.3]])] * 2
    told = rollout.compare_greedy(found, expected, probabilities)
    assert (told["pictures"], told["tokens"], told["pictures_equal"]) == (2, 3, 1)
    assert told["largest_margin"] == pytest.approx(math.log(0.6 / 0.3))
    assert rollout.compare_greedy(expected, expected, probabilities)["largest_margin"] is None


def test_the_ratio_comes_from_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that gives our prefill 1 s and our steps 2 s, the reference's 10 s and 20 s."""
    ticks: list[float] = []

    def timed(way: Any, parts: list[rollout.Part], device: torch.device) -> rollout.Timing:
        ticks.append(0.0)
        slow = isinstance(way, rollout.Reference)
        if slow:
            way.prefill()
        return rollout.Timing(10.0, 20.0) if slow else rollout.Timing(1.0, 2.0 * (1 + (len(ticks) > 2)))

    monkeypatch.setattr(rollout, "time_way", timed)
    numbers = rollout.bench_rollout(SMALL)
    assert numbers["ratio"] == {"median": 8.0, "low": 6.0, "high": 10.0, "runs": 2}
    assert numbers["ours"]["tokens_per_s"] == pytest.approx(4 * 16 / 4.0)
    assert numbers["reference"]["step_seconds"]["median"] == pytest.approx(20 / 15)


class Linear:
    """A way whose step costs as much as its place, plus one."""

    def __init__(self) -> None:
        self.time, self.places = 0.0, list[int]()

    def prefill(self) -> None:
        self.time += 5.0

    def step(self, place: int) -> None:
        self.time += place + 1.0
        self.places.append(place)


@pytest.mark.parametrize("timed", [None, 8, 100, 255])
def test_timed_places_stand_for_all(timed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    way = Linear()
    monkeypatch.setattr(rollout, "now", lambda _: way.time)
    timing = rollout.time_way(way, rollout.parts_of(255, timed), CPU)
    assert timing.prefill == 5.0
    assert timing.steps == pytest.approx(255 * 256 / 2, rel=0.005)
    assert len(way.places) == (255 if timed in (None, 255) else timed)
    assert sum(part.span for part in rollout.parts_of(255, timed)) == 255


def test_bytes_by_hand() -> None:
    """2 layers of width 8, SwiGLU 16, 32 codes: 2 x (4 x 64 + 3 x 128) + 256 = 1,536 numbers."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MentorConfig.of_size("tiny", **sizes, **{"vq_config.codebook_size": 32})
    assert decoder_weights(config) == 1536
    shape = RolloutShape(prompts=2, group=3, slots=5, tokens=4, halves=2, weight_bytes=2, cache_bytes=4)
    # keys and values of 2 layers of 8: 32 numbers a slot; 4 prefixes of 5 slots, 12 pictures that see 2 inputs
    assert step_bytes(config, shape, seen=2) == 1536 * 2 + 32 * (4 * 5 + 12 * 2) * 4
    assert rollout_bytes(config, shape) == 4 * 1536 * 2 + 32 * 4 * (3 * 20 + 12 * (1 + 2 + 3))


def test_measured_limits_and_memory() -> None:
    assert 1e8 < copy_bandwidth(CPU, 2**22) < 1e13
    assert 1e7 < product_rate(CPU, torch.float32, 128) < 1e14
    peak = PeakMemory(CPU)
    block = torch.ones(2**24)
    assert block.nbytes * 0.9 < peak.grown() < block.nbytes * 1.5
    assert Spread.of([3.0, 1.0, 2.0]).as_json() == {"median": 2.0, "low": 1.0, "high": 3.0, "runs": 3}


def test_a_steps_cost_is_split_as_the_trainer_logs_it() -> None:
    lines = [
        {"seconds/rollout": 1.0, "seconds/update": 2.0},
        {"seconds/rollout": 3.0, "seconds/update": 2.0, "kl": 9.0},
    ]
    split = cost_split(lines, pictures=8)
    assert split["phases"] == {"rollout": 2.0, "update": 2.0}
    assert (split["seconds"]["low"], split["seconds"]["high"]) == (3.0, 5.0)
    assert split["pictures_per_s"] == 2.0


def test_ar_grpos_way_takes_the_step_that_our_trainer_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pictures, rewards, loss and weights, from a random policy, by one step of each with guided rollouts."""
    held: dict[str, Any] = {}
    run = grpo_against.run_trainer

    def watched(trainer: Any, folder: Any) -> None:
        run(trainer, folder)
        held["trainer"] = trainer

    monkeypatch.setattr(grpo_against, "run_trainer", watched)
    grpo_against.write_random_policy("tiny", 16, 9, tmp_path / "policy")
    values = toy_recipe(
        tmp_path / "policy",
        tmp_path / "run",
        steps=1,
        algorithm={"guidance": {"scale": 3.0, "logprob": "conditional"}, "micro_batch": 4},
        monitoring={"every": 100, "prompts": 1},
    )
    recipe = GrpoRecipe.model_validate(values)
    folder = RunFolder.open(recipe.run, recipe.model_dump(mode="json"))
    with pytest.warns(UserWarning, match="not those of the distribution that is sampled"):
        turns = grpo_against.run_in_turns(recipe, folder, padded_to=120)
    trainer, (found,) = held["trainer"], turns.found
    assert torch.equal(found.tokens_NL, trainer._rollout.tokens_NL)
    line = list(folder.metrics())[1]
    assert found.loss == pytest.approx(line["loss"], abs=1e-5)
    assert found.gradient == pytest.approx(line["grad_norm"], rel=1e-4)
    theirs, start = turns.other.policy.decoder.state_dict(), turns.other.reference.decoder.state_dict()
    for name, ours in trainer.model.decoder.state_dict().items():  # AdamW's first step has a fixed size
        moved = (ours - start[name]).abs() > 1e-3
        parted = (ours - theirs[name]).abs() > 3e-4  # where the gradient's sign is a matter of rounding
        assert parted.float().mean() <= 0.01 * moved.float().mean()
    assert moved.any()
    assert min(turns.ours, turns.theirs) > 0
    numbers = grpo.compared([line], grpo_against_turns(turns), 8)
    assert numbers["ratio"]["median"] == pytest.approx(sum(found.seconds.values()) / grpo.step_seconds(line))


def grpo_against_turns(turns: grpo_against.Turns) -> grpo_against.Turns:
    """With a step in front that warms up."""
    turns.found = [turns.found[0], *turns.found]
    return turns


def test_commands_write_records_and_the_page_is_made_of_them(tmp_path: Path) -> None:
    file = tmp_path / "rollout.json"
    small = ["--size", "tiny", "--batch", "4", "--prompts", "2", "--tokens", "16", "--prefix", "8", "--repeats", "1"]
    done = CliRunner().invoke(app, ["bench", "rollout", *small, "--against", "reference", "--out", str(file)])
    assert done.exit_code == 0, done.output
    facts = json.loads(file.read_text(encoding="utf-8"))
    assert tuple(facts) == FIELDS
    assert {"cpu", "cores", "threads", "memory_gb"} <= set(facts["machine"])
    assert {"torch", "python"} <= set(facts["versions"])
    numbers = facts["numbers"]
    assert numbers["greedy"]["pictures_equal"] == 4
    ratio = numbers["reference"]["seconds"]["median"] / numbers["ours"]["seconds"]["median"]
    assert numbers["ratio"]["median"] == pytest.approx(ratio)
    share = numbers["bytes_moved"] / numbers["ours"]["seconds"]["median"] / numbers["copy_bandwidth"]
    assert numbers["bandwidth_share"] == pytest.approx(share)
    sft = ["bench", "sft", "--size", "tiny", "--batch", "1", "--steps", "1", "--out", str(tmp_path / "sft.json")]
    done = CliRunner().invoke(app, sft)
    assert done.exit_code == 0, done.output
    found = Record.read(tmp_path / "sft.json").numbers
    assert found["mfu"] == pytest.approx(found["flops"] / found["seconds"]["median"] / found["product_rate"])
    done = CliRunner().invoke(app, ["bench", "table", str(tmp_path), "--out", str(tmp_path / "RESULTS.md")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert table([Record.read(file)]) in text
    assert "### sft" in text
    assert page([Record.read(file)]).count("4 of 4 pictures over 16 tokens") == 1


def test_load_tells_time_and_memory_of_a_policy(random_policy: Path, tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    done = CliRunner().invoke(app, ["bench", "load", str(random_policy), "--out", str(file)])
    assert done.exit_code == 0, done.output
    record = Record.read(file)
    assert record.numbers["checkpoint_bytes"] == (random_policy / "model.safetensors").stat().st_size
    assert record.numbers["load"]["seconds"] > 0
    assert str(tmp_path) not in record.command


CONDITIONAL = "algorithm.guidance.logprob=conditional"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rollout", "--batch", "5"], "--batch: expected a multiple of --prompts 4, found 5"),
        (["rollout", "--tokens", "10"], "--tokens: expected a square number"),
        (["rollout", "--size", "BB"], "unknown size 'BB'"),
        (["rollout", "--engine", "compile", "--timed", "8"], "--timed: expected none with --engine compile"),
        (["rollout", "--device", "tpu"], "--device: expected cpu or cuda, found 'tpu'"),
        (["load"], "expected either SOURCE"),
        (["load", "--size", "XLL"], "unknown size 'XLL'; did you mean 'XL'"),
        (["grpo", "--size", "B"], "--size: expected the size of the recipe's policy, 'tiny', found 'B'"),
        (["grpo", "--tokens", "10"], "--tokens: expected a square number"),
        (["grpo", "--reference-slots", "9"], "--reference-slots: expected --tokens beside it"),
        (["grpo", "--padded-to", "512"], "--padded-to: expected --against ar_grpo beside it"),
        (["grpo", "--tokens", "16", "--reference-slots", "8"], "--reference-slots: expected a square number"),
        (
            ["grpo", "--tokens", "16", "--against", "ar_grpo", "algorithm.inner_iterations=2", CONDITIONAL],
            "expected one guidance scale for all prompts and one update a rollout",
        ),
        (["grpo", "--tokens", "16", "--against", "ar_grpo"], "expected algorithm.guidance.logprob=conditional"),
    ],
)
def test_bad_input_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)


@pytest.mark.parametrize("out", [["--out", "x.json"], ["--out=x.json"]])
def test_a_record_s_command_does_not_name_its_file(out: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mentor", "bench", *out, "load", "a folder"])
    assert Record.of("load", {}, {}, {}, {}).command == "mentor bench load 'a folder'"


def test_a_strange_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"bench": "speed"}', encoding="utf-8")
    with pytest.raises(UserError, match="expected a record of `mentor bench`"):
        Record.read(tmp_path / "other.json")


def test_the_limits_of_a_step_are_its_own_products() -> None:
    """All weights of the blocks and the head once, and of each picture the keys and values of its tokens so far."""
    works = STEP_LIMITS["works_of"](SMALL)
    assert list(works) == ["our step", "products", "keys and values", "reference's step"]
    policy = small_policy()
    layers = [layer for block in policy.decoder.blocks for layer in block.children() if hasattr(layer, "in_features")]
    widths = [layer.out_features for layer in layers] + [policy.config.vocab_size]
    assert [tuple(out.shape) for out in works["products"]()] == [(8, width) for width in widths[:-1]] + [
        (4, widths[-1])
    ]
    heads, width = policy.config.num_attention_heads, policy.config.hidden_size
    found = [tuple(out.shape) for out in works["keys and values"]()]
    shapes = [(4, heads, 2, 1, 8), (4, heads, 2, 1, width // heads)]  # scores over 8 keys, then mixed values
    assert found == shapes * policy.config.num_hidden_layers
    works["our step"](), works["reference's step"]()
