"""What a GRPO run watches: known answers, noise that fires nothing, memory that survives a resume."""

import itertools
import logging
import math
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry
from PIL import Image

from mentor_base.data.emoji import EmojiWorld
from mentor_base.data.schema import Example, Prompt
from mentor_base.runlog import RunFolder
from mentor_rl.grpo_callbacks import PhaseClock
from mentor_rl.monitors.copying import copies, copy_metrics, copy_thresholds, correlation, reference_similarity
from mentor_rl.monitors.fixed_prompts import FixedPrompts, undisturbed_randomness
from mentor_rl.monitors.groups import flat_groups, picture_diversity, thumbnails, token_diversity
from mentor_rl.monitors.hacking import HackingAlarm, evidence, threshold, trend

NAN = math.nan


def test_diversity_counts_positions_at_which_pairs_differ() -> None:
    """Group 0: one of four positions differs. Group 7: three pairs, of which two differ everywhere."""
    tokens_NL = torch.tensor([[1, 2, 3, 4], [5, 5, 5, 5], [1, 2, 3, 9], [6, 6, 6, 6], [5, 5, 5, 5]])
    assert token_diversity(tokens_NL, [0, 7, 0, 7, 7]) == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert token_diversity(tokens_NL[[1, 4]], [7, 7]) == 0.0


def test_diversity_of_pictures_is_the_distance_of_pairs() -> None:
    """Group 0: black and white, 1 apart. Group 7: three pairs, of which two are black and red, sqrt(1/3) apart."""
    colours = ["black", "black", "white", "red", "black"]
    small_ND = thumbnails([Image.new("RGB", (64, 64), colour) for colour in colours])
    assert picture_diversity(small_ND, [0, 7, 0, 7, 7]) == pytest.approx((1 + 2 / 3 * math.sqrt(1 / 3)) / 2)
    assert picture_diversity(small_ND[[0, 1]], [7, 7]) == 0.0


def test_a_group_is_flat_when_no_reward_tells_its_pictures_apart() -> None:
    values_NR = np.array([[1.0, 0.2], [1.0, 0.2], [1.0, 0.3], [1.0, 0.2], [NAN, 0.1], [2.0, NAN]])
    assert flat_groups(values_NR, [0, 0, 1, 1, 2, 2]) == pytest.approx(2 / 3)


def test_watching_puts_random_states_back() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with undisturbed_randomness():
        assert draws() == expected
    assert draws() == expected


def test_a_large_reference_does_not_make_a_large_sheet(tmp_path: Path) -> None:
    prompts = [Prompt("a fox"), Prompt("<image> this fox", (Image.new("RGB", (3000, 1500), "red"),))]
    fixed = FixedPrompts(prompts, Composite({"colour_match": RewardEntry()}), RunFolder(tmp_path), lambda table: None)
    sheet = fixed.sheet([Image.new("RGB", (16, 16), "blue")] * 2)
    assert max(sheet.size) < 100
    assert sheet.getpixel((56, 16)) == (255, 0, 0)


def test_a_phase_ends_when_the_gpu_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that return at once and leave .05 s of work to the device. An update is not waited for, the next phase not
    charged with it.
    """
    queued: list[float] = []

    def synchronize() -> None:
        time.sleep(queued.pop() if queued else 0.0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    clock = PhaseClock()
    with clock.phase(None):
        queued.append(0.05)
    assert queued
    with clock.phase("reward"):
        pass
    with clock.phase("reference"):
        queued.append(0.05)
    found = clock.metrics(1, 1)
    assert found["seconds/reward"] < 0.04 < found["seconds/reference"]


def test_trend_by_hand() -> None:
    """Four steps: six pairs; variance 4 x 3 x 13 / 18, with one tie less 2 x 1 x 9 / 18."""
    assert trend(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(5 / math.sqrt(156 / 18))
    assert trend(np.array([1.0, NAN, 2.0, 4.0, 3.0])) == pytest.approx(3 / math.sqrt(156 / 18))
    assert trend(np.array([4.0, 2.0, 2.0, 1.0])) == pytest.approx(-4 / math.sqrt((156 - 18) / 18))
    assert trend(np.full(9, 0.3)) == 0.0
    assert trend(np.array([1.0, NAN, NAN, 2.0])) == 0.0


def test_variance_of_the_trend_is_that_of_all_orders() -> None:
    for series in ([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 2.0, 3.0, 3.0]):
        orders = [np.array(order) for order in itertools.permutations(series)]
        pairs = [np.sign(order[None] - order[:, None])[np.triu_indices(5, 1)].sum() for order in orders]
        highest = max(range(len(orders)), key=lambda i: pairs[i])
        assert trend(orders[highest]) == pytest.approx((pairs[highest] - 1) / np.std(pairs))


def test_evidence_needs_both_trends_and_knows_their_signs() -> None:
    up, down, flat = np.arange(20.0), -np.arange(20.0), np.zeros(20)
    full = trend(up)
    assert full > 6
    one = np.array([1.0])
    assert evidence(up[:, None], one, down) == pytest.approx(full)
    assert evidence(up[:, None], one, up) == pytest.approx(-full)
    assert evidence(up[:, None], one, flat) == 0.0
    assert evidence(down[:, None], -one, down) == pytest.approx(full)  # a distance that falls is a reward that rises
    units = np.stack([1000.0 * down, up], axis=1)  # the second has twice the weight, whatever the first's units
    assert evidence(units, np.array([1.0, 2.0]), down) == pytest.approx(full)
    assert evidence(np.stack([up, np.full(20, NAN)], axis=1), np.array([1.0, 5.0]), down) == pytest.approx(full)


def lines(slope: float, noise: float, steps: int, seed: int = 0, mirrored: bool = False) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    trained, held = rng.normal(size=(2, steps)) * noise
    held = -trained if mirrored else held
    return [
        {"step": t + 1, "rewards/clip/mean": slope * t + trained[t], "rewards/watched/mean": held[t] - slope * t}
        for t in range(steps)
    ]


def alarm(window: int = 30) -> HackingAlarm:
    return HackingAlarm({"clip": 1.0}, {"watched": 1.0}, window, 1e-3)


def test_alarm_fires_once_when_rewards_part_and_never_on_noise(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for seed in range(5):
        quiet = alarm()
        assert all(
            found.get("hacking/watched", 0.0) < threshold(1e-3)
            for line in lines(0.0, 1.0, 200, seed)
            for found in [quiet.update(int(line["step"]), line)]
        )
    assert not caplog.records
    parting = alarm()
    found = [parting.update(int(line["step"]), line) for line in lines(0.1, 1.0, 60)]
    assert found[:29] == [{}] * 29
    assert max(values["hacking/watched"] for values in found[29:]) > threshold(1e-3) == pytest.approx(3.09, abs=0.01)
    (record,) = caplog.records
    assert (
        "the trained rewards rose while the held-out 'watched' got worse over the last 30 steps" in record.getMessage()
    )


def test_alarm_is_rare_where_noise_parts_the_rewards_by_itself() -> None:
    """The worst case of noise: each trained mean is the held-out one's negative, so that one trend is both."""
    fired = 0
    for seed in range(40):
        series = lines(0.0, 1.0, 150, seed, mirrored=True)
        trained_T = np.array([line["rewards/clip/mean"] for line in series])
        windows = [trained_T[start : start + 50] for start in range(101)]
        fired += max(trend(window) for window in windows) > threshold(1e-3)
    assert fired <= 1


def test_a_resumed_alarm_goes_on_where_it_stopped(caplog: pytest.LogCaptureFixture) -> None:
    series = lines(0.1, 1.0, 70)
    series.insert(5, {"step": 5, "loss": 0.0})  # a step without a rollout
    whole = alarm()
    logged = [line | whole.update(int(line["step"]), line) for line in series]
    assert len(caplog.records) == 1
    for cut in (10, 40, 69):
        resumed = alarm()
        resumed.recall(logged[:cut])
        assert [line | resumed.update(int(line["step"]), line) for line in series[cut:]] == logged[cut:]
    assert len(caplog.records) == 2  # the one that was cut before it fired


def test_correlation_of_pictures() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(768)
    assert correlation(a, 0.5 * a + 0.1) == pytest.approx(1.0)
    assert correlation(a, 1 - a) == pytest.approx(-1.0)
    flat = np.full(768, 0.3)
    assert (correlation(a, flat), correlation(flat, flat), correlation(flat, np.ones(768))) == (0.0, 1.0, 0.0)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def test_copies_are_what_lies_above_the_tasks_own_answers() -> None:
    """Subjects are redrawn by the data, reconstructions are not; so only a handed-back subject is a copy."""
    redrawn = [Example("subject", "<image> a", (picture(i),), picture(1000 + i)) for i in range(64)]
    same = [Example("reconstruction", "<image> b", (picture(i),), picture(i)) for i in range(64)]
    plain = [Example("t2i", "c", (), picture(i)) for i in range(3)]
    thresholds = copy_thresholds([*redrawn, *same, *plain])
    assert thresholds.keys() == {"subject", "reconstruction"}
    assert thresholds["subject"] < 0.2
    assert thresholds["reconstruction"] == pytest.approx(1.0)
    two = (picture(1), picture(2))
    prompts = [
        Prompt("<image> a", two[:1], meta={"task": "subject"}),
        Prompt("<image> <image> a", two, meta={"task": "subject"}),
        Prompt("<image> a", two[1:], meta={"task": "subject"}),
        Prompt("<image> b", two[1:], meta={"task": "reconstruction"}),
        Prompt("a", meta={"task": "t2i"}),
        Prompt("<image> a", two[:1]),
    ]
    drawn = thumbnails([picture(1), picture(2), Image.new("RGB", (16, 16)), picture(2), picture(4), picture(1)])
    similarity, copied = copies(drawn, prompts, thresholds)
    np.testing.assert_array_equal(copied, [1, 1, 0, 0, NAN, NAN])
    assert similarity[:2] == pytest.approx(1.0)
    assert copy_metrics(similarity, copied) == pytest.approx(
        {"copies/share": 0.5, "copies/similarity": float(similarity[:4].mean())}
    )
    assert copy_metrics(similarity[4:], copied[4:]) == {}
    assert np.isnan(reference_similarity(drawn[:2], [(), ()])).all()


def test_thresholds_of_the_emoji_world_tell_copies_from_answers() -> None:
    world = EmojiWorld()
    examples = [world.example("subject", "train", 0, i) for i in range(64)]
    thresholds = copy_thresholds(examples)
    others = [world.example("subject", "unseen_subjects", 1, i) for i in range(48)]
    prompts = [example.prompt() for example in others]
    blurred = [example.images[0].resize((24, 24)).resize((64, 64)) for example in others]
    assert copies(thumbnails(blurred), prompts, thresholds)[1].mean() == 1.0
    assert copies(thumbnails([example.target for example in others]), prompts, thresholds)[1].mean() < 0.2
