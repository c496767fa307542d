"""The monotonic probes that the shipped rewards declare hold on sprites, with the scorers that ship; and can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mentor_rewards.contract import AnyReward, RewardBatch, RewardEntry
from mentor_rewards.registry import BUILT_IN, build_reward, reward_class
from mentor_rewards.testing import RULES, Case, CheckResult, sample_batch, try_rule

from mentor_base.data.emoji import EmojiWorld

SCORERS = Path(__file__).parents[2] / "recipes" / "emoji" / "checkpoints"
RULE = next(rule for rule in RULES if rule.name == "probes")
UNPROBED = {
    "aesthetic": "what its published head likes was not measured here, and a random one likes anything",
    "nsfw_guard": "no picture that it should refuse belongs into a test",
    "qwen_vl_subject": "a judge's server would be asked; a random judge likes anything",
    "qwen_vl_t2i": "the same",
    "remote": "has those of the reward that is served",
}
UNTRAINED = {"hpsv2", "hpsv2.1", "pickscore", "image_reward", "dino", "dinov2"}  # probed in tests of their own


@cache
def sprites(task: str, split: str = "unseen_subjects") -> RewardBatch:
    world = EmojiWorld()
    drawn = [world.example(task, split, 0, number) for number in range(12)]
    return RewardBatch(
        images=[example.target.convert("RGB") for example in drawn],
        prompts=[example.text.replace("<image>", "").strip() for example in drawn],
        references=[tuple(example.images) for example in drawn],
        subjects=[None] * len(drawn),
        group_ids=list(range(len(drawn))),
        metadata=[dict(example.meta) for example in drawn],
    )


def probed(build: Callable[[], AnyReward], batch: RewardBatch) -> CheckResult:
    case = Case(build, batch)
    try:
        return try_rule(RULE, case)
    finally:
        case.close()


@pytest.mark.parametrize(
    ("name", "options", "batch"),
    [
        ("style", {"checkpoint": SCORERS / "style"}, lambda: sprites("subject")),
        ("subject", {"checkpoint": SCORERS / "subject"}, lambda: sprites("subject", "train")),
        ("clip_text", {"checkpoint": SCORERS / "clip"}, lambda: sprites("t2i")),
        ("clip_image", {"checkpoint": SCORERS / "clip"}, lambda: sprites("subject")),
        ("efficientnet_similarity", {"side": 64}, lambda: sprites("subject")),
        ("colour_match", {}, lambda: sprites("t2i")),
        ("jpeg_size", {}, lambda: sprites("t2i")),
        ("shape_match", {}, sample_batch),
    ],
)
def test_declared_probes_hold(name: str, options: dict[str, Any], batch: Callable[[], RewardBatch]) -> None:
    assert probed(lambda: build_reward(name, RewardEntry(options=options)), batch()).outcome == "holds"


def test_a_reward_that_mixes_up_its_samples_is_found() -> None:
    def turned() -> AnyReward:
        """CLIP-T with the prompt of another sample: right numbers in the wrong places."""
        reward: Any = build_reward("clip_text", RewardEntry(options={"checkpoint": SCORERS / "clip"}))
        score = reward.score
        reward.score = lambda batch: score(replace(batch, prompts=[*batch.prompts[-1:], *batch.prompts[:-1]]))
        return reward

    found = probed(turned, sprites("t2i"))
    assert found.outcome == "broken"
    assert "prompts of other samples make the mean score better" in found.note


def test_every_shipped_reward_declares_probes_or_says_why_not() -> None:
    declared = {name for name in BUILT_IN if reward_class(name).spec.probes}  # type: ignore[attr-defined]
    assert set(BUILT_IN) - declared == set(UNPROBED)
    assert declared > UNTRAINED
