"""A composite inside other trainers: plain trl's own reward calculation, and flow_grpo's calling convention."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mentor_rewards.adapters import as_flow_grpo_reward, as_trl_reward_funcs, reward_weights
from mentor_rewards.composite import Composite
from mentor_rewards.contract import AsyncReward, Reward, RewardBatch, RewardEntry, RewardError, RewardOutput, RewardSpec
from mentor_rewards.testing import sample_batch
from PIL import Image

HERE = __name__


class Brightness(Reward):
    """Mean of the red channel in [0, 1]; cannot score black ones."""

    spec = RewardSpec(name="brightness", version="1", range=(0.0, 1.0))
    calls = 0

    def score(self, batch: RewardBatch) -> RewardOutput:
        type(self).calls += 1
        values = [float(np.asarray(image)[..., 0].mean() / 255) for image in batch.images]
        return RewardOutput([value or None for value in values], [None if value else "black" for value in values])


class Waiting(AsyncReward):
    """Number of references, after a wait, and the step."""

    spec = RewardSpec(name="waiting", version="1", needs=frozenset({"reference"}))

    async def ascore(self, batch: RewardBatch) -> RewardOutput:
        await asyncio.sleep(0.01)
        return RewardOutput([len(references) + batch.step / 10 for references in batch.references])


ENTRIES = {
    "bright": RewardEntry(use=f"{HERE}:Brightness", weight=2.0, scale=10.0, clip=(0.0, 5.0)),
    "waiting": RewardEntry(use=f"{HERE}:Waiting", weight=0.5),
    "seen": RewardEntry(use=f"{HERE}:Brightness", role="monitor"),
}


@pytest.fixture
def composite() -> Iterator[Composite]:
    with Composite(ENTRIES, failure_rate=0.5) as loaded:
        yield loaded


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (level, level, level))


def trl_rewards(funcs: list[Any], inputs: list[dict[str, Any]], completions: list[Any]) -> tuple[Any, dict[str, float]]:
    """trl's own GRPOTrainer._calculate_rewards, on no more of a trainer than it reads; rewards [N, R] and metrics."""
    from accelerate import PartialState
    from trl import GRPOTrainer
    from trl.trainer.utils import get_callable_name

    PartialState()  # trl's logger needs it
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    metrics: dict[str, float] = {}
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
        reward_funcs=funcs,
        reward_processing_classes=[None] * len(funcs),
        reward_func_names=[get_callable_name(func) for func in funcs],
        state=SimpleNamespace(global_step=3),
        args=SimpleNamespace(report_to=[]),
        environments=None,
        async_loop=loop,
        _log_completion_extra=lambda column, values: None,
        _log_metric=lambda name, value: metrics.update({name: value}),
    )
    prompts = [row["prompt"] for row in inputs]
    try:
        rewards = GRPOTrainer._calculate_rewards(trainer, inputs, prompts, completions, [[0]] * len(prompts))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    return rewards, metrics


def rows(levels: list[int], **columns: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": "a grey <image> square",
            "picture": grey(level),
            **{key: values[n] for key, values in columns.items()},
        }
        for n, level in enumerate(levels)
    ]


def test_trl_gets_scaled_scores_of_one_scoring_call(composite: Composite) -> None:
    funcs = as_trl_reward_funcs(composite)
    assert [func.__name__ for func in funcs] == ["bright", "waiting"]
    assert reward_weights(composite) == [2.0, 0.5]
    inputs = rows([51, 0, 255], references=[[grey(1), grey(2)], None, grey(3)])
    Brightness.calls = 0
    rewards, metrics = trl_rewards(funcs, inputs, ["text that trl decoded"] * 3)
    expected = [[2.0, 2.3], [np.nan, np.nan], [5.0, 1.3]]
    np.testing.assert_allclose(rewards.numpy(), expected, rtol=1e-6)
    assert Brightness.calls == 2, "once as the trained entry, once as the monitor, though two functions were called"
    assert metrics == {"monitor/seen": pytest.approx(0.6)}
    again, _ = trl_rewards(funcs, rows([102]), ["other"])
    assert again[0, 0] == pytest.approx(4.0), "a new step is scored anew"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda image: image,
        lambda image: {"image": image},
        lambda image: [{"role": "assistant", "content": [{"type": "image", "image": image}]}],
    ],
    ids=["pil", "dict", "message"],
)
def test_trl_completions_can_be_pictures(composite: Composite, wrap: Any) -> None:
    bright, _ = as_trl_reward_funcs(composite)
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a square"}]}]
    assert bright(prompts=[prompt] * 2, completions=[wrap(grey(51)), wrap(grey(102))]) == [2.0, 4.0]


def test_trl_without_pictures_is_told_where_they_belong(composite: Composite) -> None:
    with pytest.raises(RewardError, match=r"sample 0: expected a picture in column 'picture'.*found str"):
        as_trl_reward_funcs(composite)[0](prompts=["a"], completions=["b"])


def test_prompts_and_facts_reach_the_rewards(composite: Composite, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RewardBatch] = []
    score = composite.score
    monkeypatch.setattr(composite, "score", lambda batch: seen.append(batch) or score(batch))
    same = {"references": grey(7), "subject": "fox", "metadata": {"style": "noto"}}
    inputs = {key: [value, value, value] for key, value in same.items()} | {"picture": [grey(9)] * 3}
    as_trl_reward_funcs(composite)[0](prompts=["a <image> fox", "a  fox", "a cat"], completions=[""] * 3, **inputs)
    (batch,) = seen
    assert batch.prompts == ["a fox", "a fox", "a cat"]
    assert batch.subjects == ["fox"] * 3
    assert batch.metadata[0] == {"style": "noto"}
    assert batch.group_ids == [0, 0, 1]


def test_flow_grpo_takes_every_kind_of_picture_alike(composite: Composite) -> None:
    reward_fn = as_flow_grpo_reward(composite)
    pictures = [grey(51), grey(102)]
    nhwc = np.stack([np.asarray(picture) for picture in pictures])
    nchw = nhwc.transpose(0, 3, 1, 2).copy()
    kinds = [pictures, nhwc, nchw, torch.from_numpy(nchw), torch.from_numpy(nchw).float() / 255, nchw / 255.0]
    for images in kinds:
        scores, extra = reward_fn(images, ["a", "b"], [{}, {}], only_strict=True)
        assert extra == {}
        assert set(scores) == {"bright", "waiting", "seen", "avg"}
        np.testing.assert_allclose(scores["bright"], [0.2, 0.4])
        np.testing.assert_allclose(scores["avg"], [4.0, 8.0])
        assert np.isnan(scores["waiting"]).all(), "no reference: does not apply, adds nothing"
        torch.as_tensor(scores["avg"]).float()
    with pytest.raises(RewardError, match=r"images: expected PIL pictures.*found shape \(2, 4, 4\)"):
        reward_fn(nhwc[..., 0], ["a", "b"], None)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda unit: 2 * unit - 1, "-0.6 to -0.2"),
        (lambda unit: 255 * unit, "51 to 102"),
        (lambda unit: np.where(unit > 0.3, np.nan, unit), "nan to nan"),
        (lambda unit: (255 * unit).astype(np.int64), "int64"),
    ],
)
def test_flow_grpo_refuses_pixels_on_another_scale(composite: Composite, change: Any, found: str) -> None:
    unit = np.stack([np.asarray(grey(level)) for level in (51, 102)]) / 255
    with pytest.raises(RewardError, match=rf"images: expected uint8, or floats in \[0, 1\], found {found}$"):
        as_flow_grpo_reward(composite)(change(unit), ["a", "b"])


def test_flow_grpo_fills_failed_scores_from_the_same_prompt(composite: Composite) -> None:
    reward_fn = as_flow_grpo_reward(composite)
    scores, _ = reward_fn([grey(0), grey(51), grey(0), grey(102)], ["a", "a", "b", "c"], None, ref_images=[grey(5)] * 4)
    assert np.isnan(scores["bright"][[0, 2]]).all()
    np.testing.assert_allclose(scores["avg"], np.array([2.0, 2.0, 3.0, 4.0]) * 2 + 0.5)


def test_flow_grpo_refuses_what_has_no_score() -> None:
    only_references = {"waiting": ENTRIES["waiting"]}
    with (
        Composite(only_references) as composite,
        pytest.raises(RewardError, match="no trained reward applies to prompt"),
    ):
        as_flow_grpo_reward(composite)([grey(1)], ["a"], None)
    with Composite({"bright": ENTRIES["bright"]}) as composite, pytest.raises(RewardError, match="1 of 1 pictures"):
        as_flow_grpo_reward(composite)([grey(0)], ["a"], None)


def test_both_agree_with_the_composite(composite: Composite) -> None:
    batch = replace(sample_batch(), metadata=[{}] * 6)
    direct = composite.score(batch)
    flow, _ = as_flow_grpo_reward(composite)(batch.images, batch.prompts, None, [refs[0] for refs in batch.references])
    columns = {"picture": list(batch.images), "references": list(batch.references)}
    for func in as_trl_reward_funcs(composite):
        args = {"prompts": list(batch.prompts), "completions": [""] * 6}
        found = func(**args, **columns)
        values = asyncio.run(found) if asyncio.iscoroutine(found) else found
        expected = direct.scaled(func.__name__)
        assert values == [None if np.isnan(value) else value for value in expected.tolist()]
        np.testing.assert_array_equal(flow[func.__name__], direct.native(func.__name__))
