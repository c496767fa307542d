"""OCR match with the real reader: drawn text is found, blank is not, and blur does not help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from mentor_rewards.composite import Composite, columns_of
from mentor_rewards.contract import RewardBatch, RewardEntry, RewardError, RewardOutput
from mentor_rewards.ocr_match import OcrMatch, distance_to_part, match, readable, wanted_texts
from mentor_rewards.testing import check_reward, sample_batch
from PIL import Image, ImageDraw, ImageFilter, ImageFont


def drawn(text: str, side: int = 256, points: int = 36, ink: str = "black", ground: str = "white") -> Image.Image:
    image = Image.new("RGB", (side, side), ground)
    font = ImageFont.load_default(points)
    ImageDraw.Draw(image).multiline_text((side / 2, side / 2), text, fill=ink, font=font, anchor="mm")
    return image


def batch_of(images: Sequence[Image.Image], prompts: Sequence[str]) -> RewardBatch:
    return replace(sample_batch([{}], count=len(images)), images=images, prompts=prompts)


@pytest.fixture(scope="module")
def reward() -> OcrMatch:
    reward = OcrMatch()
    reward.load("cpu", "float32")
    return reward


@pytest.mark.parametrize(
    ("prompt", "stated", "wanted"),
    [
        ('a sign that says "Open Now"', None, ["opennow"]),
        ("“Exit” above a door, “no smoking” beside it", None, ["exit", "nosmoking"]),
        ('"OPEN"', "closed", ["closed"]),
        ("", ["A", " b "], ["a", "b"]),
        ('a 10" pizza', None, []),
        ('an empty "" sign', None, []),
        ('"OPEN"', "", []),
    ],
)
def test_what_a_prompt_asks_for(prompt: str, stated: str | list[str] | None, wanted: list[str]) -> None:
    assert wanted_texts(prompt, stated) == wanted


@pytest.mark.parametrize(
    ("text", "page", "distance"),
    [
        ("open", "open", 0),
        ("open", "weareopentoday", 0),
        ("open", "", 4),
        ("open", "qqqq", 4),
        ("open", "opn", 1),
        ("open", "xoqpenx", 1),
        ("kitten", "sitting", 2),  # "sittin"
        ("a", "bbbbbbbbbb", 1),
    ],
)
def test_distance_to_the_nearest_part(text: str, page: str, distance: int) -> None:
    assert distance_to_part(text, page) == distance


def test_match_folds_case_spaces_and_width() -> None:
    assert match(wanted_texts("", "NASA 2049"), "nasa2049") == 1
    assert match(wanted_texts("", "ＯＰＥＮ"), "o p e n") == 1
    assert match(wanted_texts("", ["left", "right"]), "RIGHT nothing") == pytest.approx(1 - 3 / 9)  # the t of "right"


def test_drawn_text_is_read_and_blank_is_not(reward: OcrMatch) -> None:
    images = [
        drawn("NASA 2049"),
        drawn("Hello\nworld", 128, 24, "white", "darkgreen"),
        drawn("OPEN", 64, 20),
        Image.new("RGB", (256, 256), "white"),
        drawn("OPEN"),
        drawn("NASA 2049"),
    ]
    prompts = ['"NASA 2049"', '"hello world"', '"Open"', '"OPEN"', '"CLOSED"', "a rocket"]
    found: RewardOutput = reward.score(batch_of(images, prompts))
    assert found.scores[:4] == [1, 1, 1, 0]
    assert 0 < (found.scores[4] or 0) < 0.5
    assert found.scores[5] is None
    assert found.reasons == [None] * 5 + ["the prompt asks for no text"]
    assert found.details["read"][3] == ""
    assert found.details["read"][5] is None


def test_a_mixture_with_and_without_text_is_no_failure() -> None:
    prompts = ['a sign that says "OPEN"', "a fox", "a dog", "a cat", "a crow"]
    with Composite({"ocr": RewardEntry(use="ocr_match", on_missing="stop")}, failure_rate=0.0) as composite:
        composite.check_columns(columns_of(batch_of([drawn("OPEN")] * 5, prompts)))
        found = composite.score(batch_of([drawn("OPEN")] * 5, prompts))
        assert found.raw["ocr"] == [1, None, None, None, None]
        assert found.applies["ocr"] == [True, False, False, False, False]
        assert found.reasons["ocr"][1] == "does not apply: no text"
        stated = replace(batch_of([drawn("OPEN")], ["a fox"]), metadata=[{"text": 2049}])
        assert composite.score(stated).raw["ocr"] == [0]
        with pytest.raises(RewardError, match="reward 'ocr' needs text; the prompts have prompt"):
            composite.check_columns(columns_of(batch_of([drawn("OPEN")], ["a fox"])) - {"reference", "subject"})


@pytest.mark.parametrize(("side", "points", "radii"), [(256, 36, (0, 2, 4, 6, 8)), (64, 20, (0, 1, 1.5, 2, 3))])
def test_blur_never_raises_the_match(reward: OcrMatch, side: int, points: int, radii: Sequence[float]) -> None:
    text = "NASA 2049" if side > 64 else "OPEN"
    images = [drawn(text, side, points).filter(ImageFilter.GaussianBlur(radius)) for radius in radii]
    scores = reward.score(batch_of(images, [f'"{text}"'] * len(images))).scores
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert (scores[0], scores[-1]) == (1, 0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 64), (512, 512)), ((600, 700), (600, 700)), ((3, 900), (500, 2000)), ((1, 1), (512, 512))],
)
def test_small_and_oblong_pictures_are_brought_to_what_can_be_read(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert readable(Image.new("RGB", size), 512).size == expected


@pytest.mark.slow
def test_contract() -> None:
    images = [drawn(word) for word in ("OPEN", "NASA 2049", "Exit")]
    check_reward(OcrMatch, batch_of(images, ['"OPEN"', '"NASA 1949"', '"EXIT"']))


def test_only_the_cpu() -> None:
    with pytest.raises(RewardError, match="'cpu' only, found 'cuda:0'"):
        OcrMatch().load("cuda:0", "float32")
