"""The built-in rewards without large networks keep the contract, and give known answers on drawn pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mentor_rewards.colour_match import ColourMatch
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry
from mentor_rewards.jpeg_size import JpegSize
from mentor_rewards.registry import build_reward
from mentor_rewards.shape_match import ShapeMatch
from mentor_rewards.testing import check_reward, sample_batch
from PIL import Image, ImageDraw, ImageFilter

FACTS: dict[str, dict[str, Any]] = {
    "style": {"style": "noto"},
    "subject": {"subject_id": "1f98a"},
    "colour_match": {"background": "red"},
    "shape_match": {"objects": [{"shape": "circle", "colour": "yellow", "count": 1, "position": None}]},
}


SCORERS = Path(__file__).parents[2] / "recipes" / "emoji" / "checkpoints"
SMALL = (*FACTS, "clip_image", "clip_text", "efficientnet_similarity", "jpeg_size")


@pytest.mark.parametrize("name", SMALL)  # the others keep the contract in tests of their own
def test_contract(name: str) -> None:
    folders = {"clip_image": "clip", "clip_text": "clip", "style": "style", "subject": "subject"}
    options: dict[str, Any] = {"checkpoint": SCORERS / folders[name]} if name in folders else {}
    if name == "efficientnet_similarity":
        options = {"side": 64}
    entry = RewardEntry(options=options)
    check_reward(lambda: build_reward(name, entry), sample_batch([FACTS.get(name, {})], count=4))


def score_one(reward: Any, image: Image.Image, **metadata: Any) -> Any:
    return reward.score(replace(sample_batch([metadata], count=1), images=[image])).scores[0]


def test_colour_match_knows_the_ground_from_the_subject() -> None:
    reward = ColourMatch()
    blue = Image.new("RGB", (64, 64), (50, 100, 220))
    assert score_one(reward, blue, background="blue") == 1.0
    assert score_one(reward, blue, background="purple") < 0.3
    touching = blue.copy()
    ImageDraw.Draw(touching).rectangle((0, 10, 40, 63), fill="red")
    assert score_one(reward, touching, background="blue") == 1.0
    centre = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(centre).rectangle((12, 12, 52, 52), fill=(50, 100, 220))
    assert score_one(reward, centre, background="blue") < 0.01


def test_colour_match_rises_smoothly_towards_the_colour() -> None:
    reward = ColourMatch()
    ramp = [Image.new("RGB", (64, 64), (255 - k * 25, 255 - k * 15, 255 - k * 3)) for k in range(9)]
    scores = [score_one(reward, image, background="blue") for image in ramp]
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores)


def test_colour_match_declines_unknown_colours() -> None:
    found = ColourMatch().score(sample_batch([{"background": "gren"}], count=1))
    assert found.scores == [None]
    assert found.reasons == ["unknown background colour 'gren'; did you mean 'green'?"]
    table = {"sand": (220, 200, 150)}
    assert score_one(ColourMatch(palette=table), Image.new("RGB", (9, 9), table["sand"]), background="sand") == 1.0


def discs(*places: tuple[int, int], ink: str = "red", ground: str = "white") -> Image.Image:
    """Discs of 18 pixels with soft edges, centred at the places."""
    big = Image.new("RGB", (256, 256), ground)
    for x, y in places:
        ImageDraw.Draw(big).ellipse(((x - 9) * 4, (y - 9) * 4, (x + 9) * 4, (y + 9) * 4), fill=ink)
    return big.resize((64, 64), Image.Resampling.BOX)


def wanted(count: int = 1, colour: str = "red", shape: str = "circle", position: str | None = None) -> dict[str, Any]:
    return {"shape": shape, "colour": colour, "count": count, "position": position}


PALETTE = {"white": (255, 255, 255), "red": (255, 0, 0), "blue": (0, 0, 255), "pink": (255, 160, 180)}


def test_shape_match_counts_colours_and_places() -> None:
    reward = ShapeMatch(palette=PALETTE)
    one, two = discs((12, 12)), discs((12, 12), (46, 46))
    assert score_one(reward, two, objects=[wanted(2)]) > 0.95
    assert score_one(reward, one, objects=[wanted(2)]) == pytest.approx(0.5, abs=0.03)  # half of everything
    assert score_one(reward, two, objects=[wanted(1)]) == pytest.approx((0.5 + 1 + 1) / 3, abs=0.03)
    assert score_one(reward, one, objects=[wanted(position="top left")]) > 0.95
    assert score_one(reward, one, objects=[wanted(position="bottom right")]) == pytest.approx(0.75, abs=0.03)
    assert score_one(reward, one, objects=[wanted(colour="blue")]) == pytest.approx(2 / 3, abs=0.03)
    assert score_one(reward, one, objects=[wanted(shape="square")]) == pytest.approx(2 / 3, abs=0.05)
    assert score_one(reward, Image.new("RGB", (64, 64), "white"), objects=[wanted()]) == 0.0
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert score_one(reward, noise, objects=[wanted()]) < 0.2


def test_shape_match_checks_relations() -> None:
    reward = ShapeMatch(palette=PALETTE)
    left, right = discs((14, 32)), discs((48, 32), ink="blue")
    both = Image.fromarray(np.minimum(np.asarray(left), np.asarray(right)))
    objects = [wanted(colour="red"), wanted(colour="blue")]
    assert score_one(reward, both, objects=objects, relation="left of") > 0.95
    assert score_one(reward, both, objects=objects, relation="right of") == pytest.approx(0.75, abs=0.03)


def test_shape_match_bears_blur_and_another_size() -> None:
    reward = ShapeMatch(palette=PALETTE)
    blurred = discs((12, 12), (46, 46)).filter(ImageFilter.GaussianBlur(1))
    assert score_one(reward, blurred, objects=[wanted(2)]) > 0.9
    assert score_one(reward, blurred.resize((200, 200)), objects=[wanted(2)]) > 0.9


def test_shape_match_declines_what_it_does_not_know() -> None:
    found = ShapeMatch().score(sample_batch([{"objects": [wanted(shape="cirle")]}], count=1))
    assert found.reasons == ["unknown shape 'cirle'; did you mean 'circle'?"]
    assert found.details["count"] == [None]


def test_jpeg_size_is_larger_for_noise() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert score_one(JpegSize(), noise) > 5 * score_one(JpegSize(), Image.new("RGB", (64, 64), "red"))


def test_efficientnet_prefers_the_same_thing() -> None:
    batch = sample_batch(count=6, size=96)
    own = [(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),) for image in batch.images]
    reward = build_reward("efficientnet_similarity", RewardEntry())
    reward.load("cpu", "float32")
    same, other = (reward.score(replace(batch, references=refs, shared={})).scores for refs in (own, own[1:] + own[:1]))
    itself = reward.score(replace(batch, references=[(image,) for image in batch.images], shared={})).scores
    assert itself == pytest.approx([1.0] * 6, abs=1e-5)
    assert all(one > two + 0.05 for one, two in zip(same, other, strict=True))


def test_label_probabilities(classifier_folder: Path) -> None:
    from mentor_rewards.classifier import ConvClassifier

    batch = sample_batch([{"style": "blob"}, {"style": "nato"}], count=2)
    entry = RewardEntry(options={"checkpoint": classifier_folder})
    with Composite({"style": entry}, failure_rate=1.0) as composite:
        found = composite.score(batch)
        assert set(composite.specs["style"].weights) == {"model.safetensors"}
    expected = ConvClassifier.load(classifier_folder).probabilities(batch.images)[0, 1]
    assert found.raw["style"] == [pytest.approx(float(expected), abs=1e-5), None]
    assert found.reasons["style"] == [None, "unknown style 'nato'; did you mean 'noto'?"]
