"""The composite: micro-batches, missing scores, faults of rewards, statistics, async rewards."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from mentor_rewards.aggregate import advantages
from mentor_rewards.composite import Composite, columns_of, summary
from mentor_rewards.contract import (
    AsyncReward,
    Reward,
    RewardBatch,
    RewardEntry,
    RewardError,
    RewardFailure,
    RewardOutput,
    RewardSpec,
)
from mentor_rewards.embedding import cosine_to_references, embed_once
from mentor_rewards.testing import sample_batch
from PIL import Image


class Scripted(Reward):
    """Answers with what the metadata says; remembers the sizes of its calls."""

    spec = RewardSpec(name="scripted", version="1", range=(0.0, 10.0))
    calls: ClassVar[list[int]] = []

    def __init__(self, key: str = "value") -> None:
        self.key = key

    def score(self, batch: RewardBatch) -> RewardOutput:
        Scripted.calls.append(len(batch))
        values = [facts[self.key] for facts in batch.metadata]
        return RewardOutput(values, ["said so" if value is None else None for value in values], {"seen": values})


class Styled(Scripted):
    spec = RewardSpec(name="styled", version="1", needs=frozenset({"reference"}), metadata=frozenset({"style"}))


class Answering(Reward):
    """Answers whatever it is told to."""

    spec = RewardSpec(name="answering", version="1")

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def score(self, batch: RewardBatch) -> RewardOutput:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Distance(Scripted):
    spec = RewardSpec(name="distance", version="1", higher_is_better=False)


class Slow(AsyncReward):
    """Waits, then scores 1; on one loop from load to unload."""

    spec = RewardSpec(name="slow", version="1")
    loops: ClassVar[set[int]] = set()

    def __init__(self, wait: float = 0.2, fails: bool = False) -> None:
        self.wait, self.fails = wait, fails

    async def ascore(self, batch: RewardBatch) -> RewardOutput:
        Slow.loops.add(id(asyncio.get_running_loop()))
        await asyncio.sleep(self.wait)
        if self.fails:
            raise ConnectionError("server gone")
        return RewardOutput([1.0] * len(batch))


class GivesUp(AsyncReward):
    """Cancels its own work."""

    spec = RewardSpec(name="gives_up", version="1")

    async def ascore(self, batch: RewardBatch) -> RewardOutput:
        work = asyncio.ensure_future(asyncio.sleep(60.0))
        work.cancel()
        await work
        raise AssertionError("unreachable")


class Held(AsyncReward):
    """Holds something while it waits, and takes a moment to let go."""

    spec = RewardSpec(name="held", version="1")
    held: ClassVar[list[str]] = []

    async def ascore(self, batch: RewardBatch) -> RewardOutput:
        self.held.append("taken")
        try:
            await asyncio.sleep(60.0)
        finally:
            await asyncio.sleep(0.05)
            self.held.append("given back")
        raise AssertionError("unreachable")


class Meeting(Scripted):
    """Scores as soon as all others of its kind are scoring too."""

    place: ClassVar[threading.Barrier]

    def score(self, batch: RewardBatch) -> RewardOutput:
        Meeting.place.wait()
        return super().score(batch)


class RemoteMeeting(AsyncReward):
    spec = RewardSpec(name="remote_meeting", version="1")

    async def ascore(self, batch: RewardBatch) -> RewardOutput:
        await asyncio.to_thread(Meeting.place.wait)
        return RewardOutput([facts["value"] for facts in batch.metadata])


class Stuck(Scripted):
    """Does not come back from its second picture until it is set free."""

    free: ClassVar[threading.Event]

    def score(self, batch: RewardBatch) -> RewardOutput:
        if batch.metadata[0]["value"] == 2.0:
            Stuck.free.wait(10.0)
        return super().score(batch)


def entry(cls: type, **settings: Any) -> RewardEntry:
    return RewardEntry(use=f"{__name__}:{cls.__name__}", **settings)


@pytest.fixture(autouse=True)
def _importable() -> None:
    Scripted.calls.clear()
    assert __name__ in sys.modules


def batch_of(values: list[Any], **columns: Any) -> RewardBatch:
    n = len(values)
    given: dict[str, Any] = {
        "images": [Image.new("RGB", (8, 8))] * n,
        "prompts": ["a disc"] * n,
        "references": [()] * n,
        "subjects": [None] * n,
        "group_ids": [row // 2 for row in range(n)],
        "metadata": [{"value": value} for value in values],
    }
    return RewardBatch(**{**given, **columns})


def score(values: list[Any], failure_rate: float = 1.0, tolerate: bool = False, **settings: Any) -> Any:
    with Composite({"mine": entry(Scripted, **settings)}, failure_rate) as composite:
        return composite.score(batch_of(values), tolerate)


def test_micro_batches_keep_order_and_details() -> None:
    found = score([1.0, 2.0, 3.0, 4.0, 5.0], batch=2)
    assert found.raw["mine"] == [1, 2, 3, 4, 5]
    assert found.details["mine"]["seen"] == [1, 2, 3, 4, 5]
    assert Scripted.calls == [2, 2, 1]


def test_scaled_then_clipped() -> None:
    found = score([1.0, 2.0, None], scale=-2.0, clip=(-3.0, 0.0))
    assert found.scaled("mine").tolist()[:2] == [-2, -3]
    assert math.isnan(found.scaled("mine")[2])
    assert found.raw["mine"] == [1, 2, None]


def test_none_nan_and_infinity_are_missing_with_reasons() -> None:
    found = score([1.0, None, math.nan, math.inf, np.float32(2)])
    assert found.raw["mine"] == [1.0, None, None, None, 2.0]
    assert found.reasons["mine"] == [None, "said so", "not a number: nan", "not a number: inf", None]
    assert found.failures("mine") == 3


def test_failure_rate_and_stop() -> None:
    assert score([1.0, 1.0, 1.0, None], failure_rate=0.25).failure is None
    with pytest.raises(RewardFailure, match=r"reward 'mine': 2 of 4 .*failure_rate: 0.25.*first reason: said so"):
        score([1.0, None, 1.0, None], failure_rate=0.25)
    with pytest.raises(RewardFailure, match=r"1 of 4 .*on_missing: stop"):
        score([1.0, None, 1.0, 1.0], on_missing="stop")
    assert isinstance(score([None], failure_rate=0.25, tolerate=True).failure, RewardFailure)


def test_parts_of_a_batch_are_the_batch() -> None:
    """The failure rate too: of the whole, though one part alone is above it."""
    values = [1.0, None, 3.0, 4.0, None, 6.0]
    batch = batch_of(values)
    with Composite({"mine": entry(Scripted)}, failure_rate=0.4) as composite:
        whole = composite.score(batch, tolerate=True)
        parts = [composite.score(batch.select(rows), tolerate=True) for rows in ([0, 1], [2, 3], [4, 5])]
        found = composite.join(parts)
        parts[1].details["mine"].clear()
        assert composite.join(parts).details["mine"]["seen"] == [1.0, None, None, None, None, 6.0]
    assert [part.failure is not None for part in parts] == [True, False, True]
    assert found.failure is whole.failure is None
    assert (found.raw, found.reasons, found.applies, found.details) == (
        whole.raw,
        whole.reasons,
        whole.applies,
        whole.details,
    )
    assert found.seconds["mine"] == sum(part.seconds["mine"] for part in parts)
    with Composite({"mine": entry(Scripted)}, failure_rate=0.3) as strict:
        assert str(strict.join(parts).failure) == str(strict.score(batch, tolerate=True).failure)
        assert "2 of 6 pictures could not be scored" in str(strict.join(parts).failure)


def test_a_sample_without_the_needed_columns_is_masked_not_failed() -> None:
    picture = Image.new("RGB", (8, 8))
    batch = batch_of(
        [1.0, 2.0, 3.0],
        references=[(picture,), (), (picture,)],
        metadata=[{"value": 1.0, "style": "noto"}, {"value": 2.0, "style": "noto"}, {"value": 3.0}],
    )
    with Composite({"styled": entry(Styled, on_missing="stop")}, failure_rate=0.0) as composite:
        found = composite.score(batch)
        composite.check_columns(columns_of(batch))
        with pytest.raises(RewardError, match=r"reward 'styled' needs reference and metadata\.style"):
            composite.check_columns({"prompt"})
    assert found.raw["styled"] == [1.0, None, None]
    assert found.reasons["styled"] == [None, "does not apply: no reference", "does not apply: no metadata.style"]
    assert summary(found, batch.group_ids)["styled"].failed == 0
    assert summary(found, batch.group_ids)["styled"].missing == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0, 2.0], "expected a RewardOutput, found list"),
        (RewardOutput([1.0]), "expected 2 scores, one per picture, found 1"),
        (RewardOutput([1.0, 2.0], ["why"]), "expected 2 reasons, one per picture, found 1"),
        (RewardOutput([1.0, 2.0], details={"seen": [1]}), "expected 2 seen, one per picture, found 1"),
        (RewardOutput([1.0, "2"]), "expected scores of float or None, found str"),
        (RewardOutput([1.0, True]), "expected scores of float or None, found bool"),
        (RewardOutput(1.0), "expected scores as a list, one entry per picture, found float"),  # type: ignore[arg-type]
        (ZeroDivisionError("division\n  by zero"), "score failed: ZeroDivisionError: division by zero$"),
        (RewardError("in\ntwo lines"), "in two lines$"),
    ],
)
def test_faults_of_a_reward_name_it(answer: Any, message: str) -> None:
    composite = Composite({"faulty": entry(Answering, options={"answer": answer})})
    with pytest.raises(RewardError, match=f"^reward 'faulty': {message}") as caught:
        composite.score(batch_of([1, 2]))
    assert "\n" not in str(caught.value)
    if isinstance(answer, Exception):
        assert caught.value.__cause__ is answer


def test_entries_that_make_no_sense() -> None:
    with pytest.raises(RewardError, match="lower is better, but scale"):
        Composite({"d": entry(Distance)})
    Composite({"d": entry(Distance, scale=-1.0)})
    Composite({"d": entry(Distance, role="monitor")})
    with pytest.raises(RewardError, match="at least one entry"):
        Composite({})
    with pytest.raises(ValueError, match="low < high"):
        RewardEntry(clip=(1.0, 0.0))
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        RewardEntry(spread_floor=-0.1)


def test_statistics_by_hand() -> None:
    found = score([0.0, 2.0, 10.0, 10.0, 4.0, None])
    stats = summary(found, [0, 0, 1, 1, 2, 2])["mine"]
    assert stats.mean == pytest.approx(5.2)
    assert stats.std == pytest.approx(np.std([0, 2, 10, 10, 4], ddof=1))
    assert stats.group_std == pytest.approx((2**0.5 + 0) / 2)
    assert stats.missing == pytest.approx(1 / 6)
    assert stats.saturated == pytest.approx(3 / 5)
    assert stats.seconds > 0


def test_trained_rewards_make_the_matrix() -> None:
    entries = {
        "a": entry(Scripted, weight=2.0),
        "watched": entry(Scripted, role="monitor"),
        "b": entry(Scripted, weight=0.5, scale=10.0),
    }
    with Composite(entries) as composite:
        found = composite.score(batch_of([1.0, 2.0]))
        assert (composite.trained, composite.monitors) == (("a", "b"), ("watched",))
        assert composite.weights.tolist() == [2.0, 0.5]
    assert found.matrix().tolist() == [[1, 10], [2, 20]]


def two_tasks() -> RewardBatch:
    """A group of text-to-image samples, a group of subject-driven ones, and one that says nothing of its task."""
    tasks = ["t2i", "t2i", "subject", "subject", None]
    facts = [{"value": float(row), **({"task": task} if task else {})} for row, task in enumerate(tasks)]
    return batch_of(list(range(5)), metadata=facts)


def test_a_reward_scores_the_tasks_that_its_entry_names() -> None:
    """The others are masked and no failures, and their groups are aggregated as if the reward were not there."""
    batch = two_tasks()
    entries = {"all": entry(Scripted), "clip": entry(Scripted, tasks=["subject"], on_missing="stop", scale=-1.0)}
    with Composite(entries, failure_rate=0.0) as composite:
        found = composite.score(batch)
    assert Scripted.calls == [5, 2]
    assert found.raw["clip"] == [None, None, 2, 3, None]
    assert found.reasons["clip"][0] == "does not apply: task 't2i' is not in tasks: [subject]"
    stats = summary(found, batch.group_ids)["clip"]
    assert (stats.failed, stats.missing) == (0, pytest.approx(3 / 5))
    for aggregation in ("normalize_then_sum", "sum_then_normalize"):
        both = advantages(found.matrix(), composite.weights, batch.group_ids, aggregation)
        alone = advantages(found.matrix()[:2, :1], composite.weights[:1], batch.group_ids[:2], aggregation)
        assert np.sign(both[:2]).tolist() == np.sign(alone).tolist() == [-1, 1]
        assert both[2:4] == pytest.approx(0)  # the two rewards cancel


def test_the_failure_rate_is_of_the_samples_that_a_reward_applies_to() -> None:
    batch = two_tasks()
    batch = replace(batch, metadata=[{"value": None, "task": "t2i"}, *batch.metadata[1:]])
    with Composite({"mine": entry(Scripted, tasks=["t2i"])}, failure_rate=0.4) as composite:
        assert "1 of 2 pictures could not be scored" in str(composite.score(batch, tolerate=True).failure)


def test_a_task_that_no_trained_reward_applies_to_is_refused() -> None:
    watched = {"sees_all": entry(Scripted, role="monitor"), "clip": entry(Styled, tasks=["subject", "t2i"])}
    styled = [{**facts, "style": "noto"} for facts in two_tasks().metadata[:4]]
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(RewardError, match=r"task 't2i': .* found none: 'clip' does not apply: no reference$"):
        Composite(watched).check_tasks(batch_of([0] * 4, metadata=styled, references=[(), (), (), (picture,)]))
    Composite(watched).check_tasks(batch_of([0] * 4, metadata=styled, references=[(), (picture,), (), (picture,)]))
    with pytest.raises(RewardError, match=r"task 't2i': .* task 't2i' is not in tasks: \[subject\]"):
        Composite({"clip": entry(Scripted, tasks=["subject"])}).check_tasks(two_tasks())


def test_async_rewards_wait_together_on_one_loop() -> None:
    Slow.loops.clear()
    with Composite({"one": entry(Slow), "two": entry(Slow), "now": entry(Scripted)}) as composite:
        start = time.perf_counter()
        found = composite.score(batch_of([1.0, 2.0]))
        took = time.perf_counter() - start
        composite.score(batch_of([1.0, 2.0]))
    assert found.raw == {"one": [1.0, 1.0], "two": [1.0, 1.0], "now": [1.0, 2.0]}
    assert took < 0.35
    assert len(Slow.loops) == 1


def test_async_timeout_is_missing_and_errors_name_the_reward() -> None:
    slow = entry(Slow, options={"wait": 5.0}, timeout=0.05)
    with Composite({"judge": slow}, failure_rate=1.0) as composite:
        found = composite.score(batch_of([1.0]))
    assert found.reasons["judge"] == ["no answer within 0.05 s"]
    gone = entry(Slow, options={"wait": 0.0, "fails": True})
    with (
        Composite({"judge": gone, "other": entry(Slow, options={"wait": 60.0})}) as composite,
        pytest.raises(RewardError, match="reward 'judge': ascore failed: ConnectionError: server gone"),
    ):
        composite.score(batch_of([1.0]))


def test_a_reward_that_cancels_its_own_work_is_a_fault() -> None:
    with (
        Composite({"judge": entry(GivesUp), "other": entry(Slow)}) as composite,
        pytest.raises(RewardError, match="reward 'judge': ascore failed: CancelledError"),
    ):
        composite.score(batch_of([1.0]))


def test_work_that_a_fault_leaves_behind_lets_go_before_the_loop_ends() -> None:
    Held.held.clear()
    with Composite({"waits": entry(Held), "faulty": entry(Answering, options={"answer": None})}) as composite:
        while not Held.held:
            with pytest.raises(RewardError, match="reward 'faulty'"):
                composite.score(batch_of([1.0]))
    assert Held.held.count("given back") == Held.held.count("taken")


def test_devices_and_remote_rewards_score_beside_each_other() -> None:
    """Three that wait for each other, on two devices and a server: one after the other they would never end."""
    Meeting.place = threading.Barrier(3, timeout=5.0)
    entries = {
        "here": entry(Meeting, device="cpu"),
        "there": entry(Meeting, device="meta"),
        "remote": entry(RemoteMeeting),
        "after": entry(Scripted, device="cpu"),
    }
    with Composite(entries) as composite:
        assert composite.score(batch_of([1.0, 2.0])).raw == {name: [1.0, 2.0] for name in entries}


def test_a_synchronous_call_is_not_waited_for_past_its_timeout() -> None:
    """Its micro-batch is missing, so are those until the call has ended; then the reward is called again."""
    Stuck.free = threading.Event()
    with Composite({"stuck": entry(Stuck, timeout=0.1, batch=1)}, failure_rate=1.0) as composite:
        found = composite.score(batch_of([1.0, 2.0, 3.0]))
        assert found.raw["stuck"] == [1.0, None, None]
        assert found.reasons["stuck"] == [None, "no answer within 0.1 s", "still busy with a call that ran past 0.1 s"]
        assert found.failures("stuck") == 2
        Stuck.free.set()
        deadline = time.perf_counter() + 5
        while composite.score(batch_of([1.0])).raw["stuck"] == [None]:
            assert time.perf_counter() < deadline


class Counting(Reward):
    """Cosine to the reference by an encoder that counts what it embeds."""

    spec = RewardSpec(name="counting", version="1", needs=frozenset({"reference"}))
    embedded: ClassVar[list[tuple[int, int]]] = []

    def score(self, batch: RewardBatch) -> RewardOutput:
        return cosine_to_references(batch, "counting encoder", self.embed)

    def embed(self, images: Any) -> np.ndarray:
        Counting.embedded += [image.size for image in images]
        return np.ones((len(images), 1))


def test_references_are_embedded_once_per_group_and_encoder() -> None:
    """Two groups of four, two rewards, micro-batches of three: eight pictures and two references, once each."""
    Counting.embedded.clear()
    drawn = [Image.new("RGB", (8, 8), (row, 0, 0)) for row in range(8)]
    references = [(Image.new("RGB", (9, 9), "red"),), (Image.new("RGB", (9, 9), "blue"),)]
    batch = batch_of(
        [0] * 8, images=drawn, references=[references[row // 4] for row in range(8)], group_ids=[0] * 4 + [1] * 4
    )
    with Composite({"one": entry(Counting, batch=3), "two": entry(Counting)}) as composite:
        assert composite.score(batch).raw == {"one": [1.0] * 8, "two": [1.0] * 8}
    assert sorted(Counting.embedded) == [(8, 8)] * 8 + [(9, 9)] * 2


def test_encoders_do_not_take_each_others_embeddings() -> None:
    shared: dict[Any, Any] = {}
    for encoder, width in (("one", 1.0), ("two", 2.0), ("one", 3.0)):
        found = embed_once(shared, encoder, ["fox", "dog", "fox"], lambda items, w=width: np.full((len(items), 1), w))
        assert found.tolist() == [[2.0 if encoder == "two" else 1.0]] * 3


def test_failed_load_unloads_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    composite = Composite({"a": entry(Scripted), "b": entry(Scripted)})
    unloaded: list[str] = []
    for name, reward in composite.rewards.items():
        monkeypatch.setattr(reward, "unload", lambda name=name: unloaded.append(name), raising=False)

    def fail(device: str, dtype: str) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(composite.rewards["b"], "load", fail, raising=False)
    with pytest.raises(RewardError, match="reward 'b': load failed: MemoryError: full"):
        composite.load()
    assert unloaded == ["a", "b"]


def test_one_that_cannot_be_unloaded_keeps_no_other_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    composite = Composite({"a": entry(Scripted), "b": entry(Scripted), "slow": entry(Slow)})
    unloaded: list[str] = []

    def fail(*_: str) -> None:
        raise OSError("busy")

    monkeypatch.setattr(composite.rewards["a"], "unload", fail, raising=False)
    monkeypatch.setattr(composite.rewards["b"], "unload", lambda: unloaded.append("b"), raising=False)
    before = threading.active_count()
    composite.load()
    with pytest.raises(RewardError, match="reward 'a': unload failed: OSError: busy"):
        composite.unload()
    assert unloaded == ["b"]
    assert threading.active_count() == before, "the event loop has ended"
    monkeypatch.setattr(composite.rewards["b"], "load", fail, raising=False)
    with pytest.raises(RewardError, match="reward 'b': load failed: OSError: busy"):
        composite.load()


def test_a_batch_has_equal_columns() -> None:
    with pytest.raises(RewardError, match=r"RewardBatch\.prompts: expected 2 entries, one per image, found 1"):
        batch_of([1.0, 2.0], prompts=["a"])


def test_shared_work_goes_with_sub_batches() -> None:
    batch = sample_batch()
    batch.select([0]).shared["key"] = 1
    assert batch.select([1]).shared == {"key": 1}
