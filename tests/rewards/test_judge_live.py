"""Against a real OpenAI-compatible server: MENTOR_JUDGE_URL=http://127.0.0.1:8000/v1, MENTOR_JUDGE_MODEL its model.

    mentor judge serve --model FOLDER --name tiny --python VLLM_ENVIRONMENT/bin/python

Any model will do, a tiny random one (tiny_judge.py) too: this is about the protocol and the format of answers.
"""

from __future__ import annotations

import os

import pytest
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry, RewardError
from mentor_rewards.testing import sample_batch

URL, MODEL = os.environ.get("MENTOR_JUDGE_URL"), os.environ.get("MENTOR_JUDGE_MODEL", "tiny")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(URL is None, reason="MENTOR_JUDGE_URL names no server")]
OPTIONS = {"url": URL, "model": MODEL, "timeout": 300.0, "max_tokens": 1024, "temperature": 1.0}


@pytest.mark.parametrize(("use", "highest"), [("qwen_vl_t2i", 4.0), ("qwen_vl_subject", 5.0)])
def test_a_real_server_answers_within_the_schema(use: str, highest: float) -> None:
    with Composite({"judge": RewardEntry(use=use, options=OPTIONS)}, failure_rate=1.0) as composite:
        found = composite.score(sample_batch(count=4))
    assert found.reasons["judge"] == [None] * 4
    assert all(value is not None and 0 <= value <= highest for value in found.raw["judge"])
    assert found.details["judge"]["asked"] == [1] * 4


def test_too_many_pictures_are_a_fault_of_the_configuration() -> None:
    batch = sample_batch(count=3)
    crowded = [references * 8 for references in batch.references]
    batch = type(batch)(
        batch.images, batch.prompts, crowded, batch.subjects, batch.group_ids, batch.metadata, batch.step
    )
    with (
        Composite({"judge": RewardEntry(use="qwen_vl_subject", options=OPTIONS)}) as composite,
        pytest.raises(RewardError, match="refuses the request as configured: 400"),
    ):
        composite.score(batch)
