"""The judge in this process: a tiny random Qwen2.5-VL under the grammar; its scores mean nothing, its format does."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from mentor_rewards.contract import RewardError
from mentor_rewards.qwen_vl import QwenVlSubject, QwenVlT2i
from mentor_rewards.testing import sample_batch
from tiny_judge import save_tiny_judge


@pytest.fixture(scope="module")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_judge")
    save_tiny_judge(folder)
    return folder


@pytest.mark.slow
def test_random_weights_answer_within_the_schema(tiny_judge: Path) -> None:
    pytest.importorskip("xgrammar")
    reward = QwenVlSubject(backend="local", model=str(tiny_judge), max_tokens=1024, temperature=1.0)
    reward.load("cpu", "float32")
    batch = sample_batch(count=3)
    first, again = (asyncio.run(reward.ascore(batch)) for _ in range(2))
    assert first == again  # the seed decides
    for row, score in enumerate(first.scores):
        assert score is not None, first.reasons[row]
        assert 0 <= score <= 5
        assert 0 <= first.details["B"][row] <= 3.2
    reward.unload()


@pytest.mark.slow
def test_pictures_take_their_places(tiny_judge: Path) -> None:
    pytest.importorskip("xgrammar")
    from mentor_rewards.judge_local import LocalJudge

    judge = LocalJudge(str(tiny_judge), "cpu", "float32")
    reward = QwenVlSubject(backend="local", model=str(tiny_judge))
    inputs = judge.inputs(reward._requests(sample_batch(count=3))[0])
    patches = int(inputs["image_grid_thw"].prod(dim=1).sum())
    assert judge.identity == f"{judge.model} float32"
    assert inputs["image_grid_thw"].shape == (2, 3)
    assert inputs["pixel_values"].shape[0] == patches
    assert int(inputs["mm_token_type_ids"].sum()) == patches // 4


def test_without_xgrammar_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(RewardError, match="needs the extra 'judge-local'"):
        QwenVlT2i(backend="local", model="anywhere").load("cpu", "float32")
