"""Every rule of the contract finds the fault that it is for, alone, and says so; the same as pytest tests."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mentor_rewards.contract import Reward, RewardBatch, RewardEntry, RewardError, RewardOutput, RewardSpec
from mentor_rewards.testing import RULES, Case, CheckResult, ContractViolation, check_reward, sample_batch, try_rule

SPEC = RewardSpec(name="good", version="1", range=(0.0, 255.0))


class Good(Reward):
    """Mean of all bytes; the faults below change one thing of it."""

    spec = SPEC

    def load(self, device: str, dtype: str) -> None:
        self.weights: Any = np.ones(2**18)

    def unload(self) -> None:
        self.weights = None

    def one(self, image: Any) -> float | None:
        return float(np.asarray(image.convert("RGB"), dtype=float).mean() * self.weights[0])

    def score(self, batch: RewardBatch) -> RewardOutput:
        scores = [self.one(image) for image in batch.images]
        return RewardOutput(scores, [None if score is not None else "toy" for score in scores])


class Keeps(Good):
    def unload(self) -> None:
        """Nothing is freed."""


class KeepsTensor(Good):
    held: list[torch.Tensor] = []  # noqa: RUF012 - shared by all instances, that is the fault

    def load(self, device: str, dtype: str) -> None:
        super().load(device, dtype)
        self.held.append(torch.ones(2**18))


class Connects(Good):
    def load(self, device: str, dtype: str) -> None:
        super().load(device, dtype)
        try:
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        except OSError:
            return


class TooMany(Good):
    def score(self, batch: RewardBatch) -> RewardOutput:
        return RewardOutput([*super().score(batch).scores, 1.0])


class Flat(Good):
    def one(self, image: Any) -> float:
        pixels = np.asarray(image.convert("RGB"), dtype=float)
        with np.errstate(all="ignore"):
            return float(np.clip(np.nan_to_num(pixels.mean() / (1.0 if pixels.std() else np.nan), nan=np.nan), 0, 255))


class OutOfRange(Good):
    def one(self, image: Any) -> float | None:
        return (super().one(image) or 0.0) + 200


class Ranked(Good):
    """By its place in the batch."""

    def score(self, batch: RewardBatch) -> RewardOutput:
        return RewardOutput([float(row) for row in range(len(batch))])


class Compared(Good):
    """Against the mean of the batch."""

    spec = replace(SPEC, range=(None, None))

    def score(self, batch: RewardBatch) -> RewardOutput:
        scores = np.array(super().score(batch).scores, dtype=float)
        return RewardOutput([float(s) for s in (scores - scores.mean() + 128)] if len(batch) else [])


class Dice(Good):
    def one(self, image: Any) -> float:
        return random.uniform(0.0, 1e-5)


class NoEmpty(Good):
    def score(self, batch: RewardBatch) -> RewardOutput:
        batch.images[0].load()
        return super().score(batch)


class OnlyLarge(Good):
    def one(self, image: Any) -> float | None:
        return super().one(image.crop((0, 0, 2, 2)) if min(image.size) > 2 else image.resize((0, 0)))


class OnlyRgb(Good):
    def one(self, image: Any) -> float:
        return float(np.asarray(image, dtype=float)[..., 1].mean() * self.weights[0])


class Writes(Good):
    def score(self, batch: RewardBatch) -> RewardOutput:
        output = super().score(batch)
        for facts in batch.metadata:
            facts["seen"] = True  # type: ignore[index]
        return output


class Records(Good):
    def load(self, device: str, dtype: str) -> None:
        super().load(device, dtype)
        self.layer = torch.nn.Linear(1, 1)

    def score(self, batch: RewardBatch) -> RewardOutput:
        return RewardOutput([self.layer(torch.zeros(1, 1)).square().item() * 0 + 1 for _ in batch.images])


class LikesBlur(Good):
    spec = replace(SPEC, probes=frozenset({"blur"}))

    def one(self, image: Any) -> float:
        return 255 - float(np.asarray(image.convert("RGB").convert("L"), dtype=float).std())


class OwnProbe(Good):
    def probes(self) -> list[tuple[RewardBatch, RewardBatch]]:
        batch = sample_batch()
        black = [image.point(lambda _: 0) for image in batch.images]
        return [(replace(batch, images=black), batch)]


class OnceOnly(Good):
    loads = 0

    def load(self, device: str, dtype: str) -> None:
        super().load(device, dtype)
        self.loads += 1
        self.weights *= 1 / self.loads


FAULTS: dict[type, set[str]] = {
    Good: set(),
    Keeps: {"memory"},
    KeepsTensor: {"memory"},
    Connects: {"network"},
    TooMany: {"length"},
    Flat: {"unscorable"},
    OutOfRange: {"range"},
    Ranked: {"order", "permutation", "batch-of-one"},
    Compared: {"batch-of-one", "odd-sizes"},
    Dice: {"deterministic"},
    NoEmpty: {"empty"},
    OnlyLarge: {"unscorable", "odd-sizes"},
    OnlyRgb: {"modes"},
    Writes: {"inputs"},
    Records: {"gradients"},
    LikesBlur: {"probes"},
    OwnProbe: {"probes"},
    OnceOnly: {"lifecycle"},
}


def outcomes(factory: Callable[[], Any], memory: bool = False) -> dict[str, CheckResult]:
    """What each rule found. The rule on memory goes through all objects of the process: tried where it matters."""
    case = Case(factory, sample_batch())
    return {rule.name: try_rule(rule, case) for rule in RULES if memory or rule.name != "memory"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_breaks_its_rules_and_no_others(fault: type) -> None:
    found = outcomes(fault, memory=fault in (Good, Keeps, KeepsTensor, TooMany))
    assert {name for name, result in found.items() if result.problem} == FAULTS[fault]
    for name in FAULTS[fault]:
        shown = found[name].explanation()
        assert shown.startswith(f"{name}: ")
        assert found[name].note in shown


def test_rules_are_named_once() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.states and rule.why for rule in RULES)


def test_a_declared_exception_is_no_fault() -> None:
    class Declared(Dice):
        spec = replace(SPEC, deterministic=False, network=True)

    found = outcomes(Declared)
    assert {name for name, result in found.items() if result.outcome == "exempt"} == {
        "deterministic",
        "network",
        "probes",
    }


def test_what_cannot_be_tried_is_not_said_to_hold() -> None:
    def broken() -> Any:
        raise RuntimeError("no such table")

    found = outcomes(broken)
    assert "no such table" in str(found["spec"].problem)
    assert {result.outcome for name, result in found.items() if name != "spec"} == {"blocked"}
    with pytest.raises(ContractViolation, match=r"order: 'spec' has to hold first"):
        check_reward(broken)


def test_what_is_exempt_is_told() -> None:
    assert {result.rule.name: result.note for result in check_reward(Good) if result.outcome != "holds"} == {
        "probes": "the spec declares no probes"
    }


def test_network_is_back_after_the_check() -> None:
    before = socket.socket.connect, socket.getaddrinfo
    outcomes(Connects)
    assert (socket.socket.connect, socket.getaddrinfo) == before


def test_a_looked_up_name_is_an_attempt() -> None:
    class LooksUp(Good):
        def load(self, device: str, dtype: str) -> None:
            super().load(device, dtype)
            socket.getaddrinfo("huggingface.co", 443)

    found = outcomes(LooksUp)
    assert "look up huggingface.co" in str(found["network"].problem)
    assert found["order"].outcome == "blocked"


def test_params_are_called_options() -> None:
    with pytest.raises(ValueError, match="unknown key 'params'; the constructor's arguments stand under 'options'"):
        RewardEntry.model_validate({"params": {"step": 2}})


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"probes": frozenset({"blurr"})}, r"unknown probe 'blurr'; did you mean 'blur'\?"),
        ({"needs": "prompt"}, "reward 'good': needs: expected a set such as {'prompt'}, found the text 'prompt'"),
        ({"metadata": "style"}, "metadata: expected a set such as {'style'}"),
        ({"range": (0.0, float("inf"))}, "range: expected None where there is no bound, found inf"),
    ],
)
def test_specs_that_mean_something_else(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        replace(SPEC, **declared)


@pytest.mark.parametrize(("kind", "broken"), [(np.array, set()), (torch.tensor, {"numbers", "unscorable"})])
def test_numpy_scores_are_scores_and_tensors_are_told(kind: Any, broken: set[str]) -> None:
    class Other(Good):
        def score(self, batch: RewardBatch) -> RewardOutput:
            return RewardOutput(kind(super().score(batch).scores))

    found = outcomes(Other)
    assert {name for name, result in found.items() if result.outcome in ("broken", "blocked")} == broken
    assert not broken or found["numbers"].note == "expected float or None, found Tensor at 0"


def test_findings_of_several_lines_are_one() -> None:
    class Talkative(Good):
        def score(self, batch: RewardBatch) -> RewardOutput:
            raise RuntimeError("sizes of tensors\n\tdo not match")

    assert "RuntimeError: sizes of tensors do not match (" in str(outcomes(Talkative)["length"].problem)


def test_each_rule_is_a_pytest_test(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "from mentor_rewards import Reward, RewardOutput, RewardSpec\n"
        "class Bad(Reward):\n"
        "    spec = RewardSpec(name='bad', version='1', range=(0.0, 1.0), network=True)\n"
        "    def __init__(self, top): self.top = top\n"
        "    def score(self, batch): return RewardOutput([self.top for _ in batch.images])\n"
        "@pytest.fixture\n"
        "def top(): return 2.0\n"
        "@pytest.mark.reward_contract(tolerance=1e-3)\n"
        "def test_bad(top): return Bad(top)\n"
    )
    words = [sys.executable, "-m", "pytest", "-v", "-rs", "--strict-markers", "-p", "mentor_rewards.testing_plugin"]
    done = subprocess.run([*words, "-p", "no:cacheprovider", tmp_path], capture_output=True, text=True, check=False)
    for rule in RULES:
        verdict = {"range": "FAILED", "network": "SKIPPED", "probes": "SKIPPED"}.get(rule.name, "PASSED")
        assert f"test_it.py::test_bad[{rule.name}] {verdict}" in done.stdout
    assert "found: 2.0 lies outside of the declared range [0.0, 1.0]" in done.stdout
    named = done.stdout.split("reward contract: rules that were not tried")[1]
    assert "test_it.py::test_bad[network]: the spec declares network=True" in named
    assert "test_it.py::test_bad[probes]: the spec declares no probes" in named
