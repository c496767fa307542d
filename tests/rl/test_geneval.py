"""GenEval: rules by hand, all six tags on pictures of coloured rectangles, the detector's postprocessing by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.evaluate.geneval import (
    CLASSES,
    COLOURS,
    TAGS,
    Clause,
    Detection,
    GenEvalPrompt,
    judge,
    read_prompts,
    relations,
)
from mentor_rl.evaluate.geneval_bench import GenEval, accuracies
from mentor_rl.evaluate.geneval_colours import ClipColours, cut_out
from mentor_rl.evaluate.geneval_detector import (
    InstanceNetwork,
    Mask2FormerDetector,
    box_around,
    instances,
    prepared,
    resized,
)
from mentor_rl.evaluate.picture_run import run_benchmark
from mentor_rl.evaluate.recipes import GenEvalRecipe

CLIP = Path(__file__).parents[2] / "recipes" / "emoji" / "checkpoints" / "clip"
GROUND = (128, 128, 128)
RGB = {
    "red": (220, 30, 30), "orange": (250, 140, 20), "yellow": (250, 230, 40), "green": (40, 170, 60),
    "blue": (40, 70, 220), "purple": (120, 40, 170), "pink": (250, 150, 200), "brown": (120, 70, 30),
    "black": (0, 0, 0), "white": (255, 255, 255),
}  # fmt: skip
SIZES = {"cup": (20, 20), "bus": (36, 16), "bottle": (12, 30)}  # width and height tell the classes apart


def picture(*things: tuple[str, str, int, int]) -> Image.Image:
    """Rectangles of (class, colour, left, top) on grey."""
    image = Image.new("RGB", (128, 96), GROUND)
    for name, colour, left, top in things:
        width, height = SIZES[name]
        ImageDraw.Draw(image).rectangle((left, top, left + width - 1, top + height - 1), fill=RGB[colour])
    return image


class RectangleDetector:
    """Connected patches that are not the ground, named by their size."""

    name, stand_in = "rectangles", True

    def __call__(self, image: Image.Image) -> list[Detection]:
        pixels = np.asarray(image)
        free = (pixels != GROUND).any(-1)
        found = []
        while free.any():
            mask = np.zeros_like(free)
            row, column = np.argwhere(free)[0]
            mask[row, column] = True
            while True:
                grown = mask.copy()
                grown[1:] |= mask[:-1]
                grown[:-1] |= mask[1:]
                grown[:, 1:] |= mask[:, :-1]
                grown[:, :-1] |= mask[:, 1:]
                grown &= free
                if (grown == mask).all():
                    break
                mask = grown
            free &= ~mask
            left, top, right, bottom = box_around(mask)
            name = {size: name for name, size in SIZES.items()}[int(right - left), int(bottom - top)]
            found.append(Detection(name, 0.95, (left, top, right, bottom), mask))
        return found


class NearestColour:
    """The colour of the table that is nearest to the object's mean."""

    name, stand_in = "RGB", True

    def __call__(self, image: Image.Image, objects: Sequence[Detection], name: str) -> list[str]:
        means = [np.asarray(image)[each.mask_HW].mean(0) for each in objects]
        return [min(COLOURS, key=lambda colour: float(((np.array(RGB[colour]) - mean) ** 2).sum())) for mean in means]


LINES: dict[str, dict[str, Any]] = {
    "single_object": {"include": [{"class": "cup", "count": 1}], "prompt": "a photo of a cup"},
    "two_object": {
        "include": [{"class": "cup", "count": 1}, {"class": "bus", "count": 1}],
        "prompt": "a cup and a bus",
    },
    "counting": {"include": [{"class": "cup", "count": 3}], "exclude": [{"class": "cup", "count": 4}], "prompt": "3"},
    "colors": {"include": [{"class": "bus", "count": 1, "color": "purple"}], "prompt": "a photo of a purple bus"},
    "position": {
        "include": [{"class": "bus", "count": 1}, {"class": "cup", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a cup left of a bus",
    },
    "color_attr": {
        "include": [{"class": "bottle", "count": 1, "color": "white"}, {"class": "bus", "count": 1, "color": "black"}],
        "prompt": "a photo of a white bottle and a black bus",
    },
}
PICTURES: dict[str, dict[bool, list[Image.Image]]] = {
    "single_object": {
        True: [picture(("cup", "red", 5, 5)), picture(("cup", "red", 5, 5), ("bus", "blue", 60, 5))],
        False: [picture(("bus", "red", 5, 5)), picture()],
    },
    "two_object": {
        True: [picture(("cup", "red", 5, 5), ("bus", "blue", 60, 5))],
        False: [picture(("cup", "red", 5, 5)), picture(("bus", "red", 5, 5), ("bus", "blue", 60, 5))],
    },
    "counting": {
        True: [picture(*(("cup", "red", 5 + 30 * i, 5) for i in range(3)))],
        False: [picture(*(("cup", "red", 5 + 30 * i, 5) for i in range(n))) for n in (2, 4)],
    },
    "colors": {
        True: [picture(("bus", "purple", 5, 5), ("cup", "red", 60, 5))],
        False: [picture(("bus", "red", 5, 5), ("cup", "purple", 60, 5))],
    },
    "position": {
        True: [picture(("cup", "red", 5, 40), ("bus", "blue", 60, 40))],
        False: [
            picture(("bus", "red", 5, 40), ("cup", "blue", 60, 40)),
            picture(("cup", "red", 50, 5), ("bus", "blue", 60, 60)),  # above rather than left
            picture(("cup", "red", 5, 40)),
        ],
    },
    "color_attr": {
        True: [picture(("bottle", "white", 5, 5), ("bus", "black", 60, 5))],
        False: [picture(("bottle", "black", 5, 5), ("bus", "white", 60, 5))],  # the colours are swapped
    },
}


def prompts_file(folder: Path, tags: Sequence[str] = tuple(LINES)) -> Path:
    file = folder / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps({"tag": tag, **LINES[tag]}) + "\n" for tag in tags), encoding="utf-8")
    return file


@pytest.mark.parametrize("tag", list(LINES))
def test_rectangles_tell_right_from_wrong(tag: str, tmp_path: Path) -> None:
    [prompt] = read_prompts(prompts_file(tmp_path, [tag]))
    for right, images in PICTURES[tag].items():
        for image in images:
            verdict = judge(prompt, RectangleDetector()(image), lambda o, n, i=image: NearestColour()(i, o, n))
            assert verdict.correct is right, verdict.reasons
            assert bool(verdict.reasons) is not right


def seen(name: str, score: float = 0.95, box: tuple[float, float, float, float] = (0, 0, 10, 10)) -> Detection:
    return Detection(name, score, box, np.ones((1, 1), bool))


def test_relations_by_hand() -> None:
    """Boxes of 10 x 10: each axis of the offset loses .1 x 20 = 2."""
    here = (0.0, 0.0, 10.0, 10.0)

    def to(x: float, y: float) -> tuple[str, ...]:
        return relations(seen("cup", box=(x, y, x + 10, y + 10)), seen("bus", box=here))

    assert to(-20, 0) == ("left of",)  # (-18, 0) / 20 = -.9
    assert to(20, 0) == ("right of",)
    assert to(0, -20) == ("above",)
    assert to(0, 20) == ("below",)
    assert to(20, 20) == ("right of", "below")  # 18 / 28.3 = .64 along both
    assert to(3.9, 0) == ()  # 1.9 / 3.9 = .49
    assert to(4.1, 0) == ("right of",)  # 2.1 / 4.1 = .51
    assert to(1.9, 0) == ()
    assert to(0, 0) == ()


def test_thresholds_and_the_best_of_a_class() -> None:
    one = GenEvalPrompt(0, "single_object", "", (Clause("cup", 1),))
    two = GenEvalPrompt(0, "counting", "", (Clause("cup", 2),), (Clause("cup", 3),))
    many = GenEvalPrompt(0, "single_object", "", (Clause("cup", 17),))

    def right(prompt: GenEvalPrompt, *scores: float) -> bool:
        return judge(prompt, [seen("cup", score) for score in scores], lambda objects, name: []).correct

    assert (right(one, 0.31), right(one, 0.3)) == (True, False)
    assert (right(two, 0.95, 0.91, 0.9), right(two, 0.95, 0.9), right(two, 0.95, 0.91, 0.92)) == (True, False, False)
    assert not right(many, *[0.9] * 40)  # no more than 16 of a class count

    asked: list[list[float]] = []
    red = GenEvalPrompt(0, "colors", "", (Clause("cup", 1, colour="red"),))
    judge(red, [seen("cup", 0.5), seen("cup", 0.8)], lambda o, n: asked.append([e.score for e in o]) or ["red"])
    assert asked == [[0.8]]  # only the best one's colour counts


def test_a_place_beside_a_wrong_object_is_wrong() -> None:
    clauses = (Clause("bus", 1, colour="red"), Clause("cup", 1, place=("left of", 0)))
    prompt = GenEvalPrompt(0, "position", "", clauses)
    objects = [seen("bus", box=(50, 0, 60, 10)), seen("cup")]
    assert judge(prompt, objects, lambda o, n: ["red"] * len(o)).correct
    verdict = judge(prompt, objects, lambda o, n: ["blue"] * len(o))
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["bus", "cup"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "colours"}, "unknown tag 'colours'; did you mean 'colors'"),
        ({"include": [{"class": "mouse", "count": 1}]}, "unknown class 'mouse'"),
        ({"include": [{"class": "cup", "count": 1, "color": "grene"}]}, "did you mean 'green'"),
        ({"include": [{"class": "cup", "count": 1, "position": ["left of", 0]}]}, "number of an earlier clause"),
        ({"include": []}, "at least one object"),
        ({"include": [{"class": "cup"}]}, "no key 'count'"),
    ],
)
def test_prompts_are_strict(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text(json.dumps({"tag": "single_object", **LINES["single_object"], **change}), encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        read_prompts(file)
    assert str(raised.value).startswith(f"{file}:1: ")
    with pytest.raises(UserError, match="djghosh13/geneval"):
        read_prompts(tmp_path / "elsewhere")


def test_sizes_as_mmdet_has_them() -> None:
    assert resized(512, 512) == (800, 800)
    assert resized(480, 1000) == (640, 1333)  # the long side decides
    assert resized(640, 427) == (1199, 800)
    pixels, inner = prepared(Image.new("RGB", (427, 640), (124, 116, 104)))
    assert (inner, tuple(pixels.shape)) == ((1199, 800), (1, 3, 1216, 800))
    assert pixels[0, :, 1199:].abs().max() == 0  # the padding
    assert float(pixels[0, 0, 0, 0]) == pytest.approx((124 - 123.675) / 58.395, abs=1e-6)


def test_postprocessing_by_hand() -> None:
    """Three queries: a sure cup on the left half, the same query as a bus, a mask that is nowhere."""
    cup, bus = CLASSES.index("cup"), CLASSES.index("bus")
    classes = torch.full((3, len(CLASSES) + 1), -30.0)
    classes[0, cup], classes[0, bus] = 2.0, 1.6  # .5987 and .4013
    classes[1, cup] = classes[1, -1] = 1.0  # .5, and "no object"
    classes[2, bus] = 5.0
    masks = torch.full((3, 8, 8), -4.0)
    masks[0, :, :4] = 4.0
    masks[1, :4, :4], masks[1, 4:, :4] = 4.0, 0.5
    found = instances(classes, masks, padded=(8, 8), inner=(8, 8), size=(8, 8))
    assert [each.name for each in found] == ["cup", "cup", "bus"]
    sure, unsure = torch.tensor([4.0, 0.5]).sigmoid().tolist()
    assert [each.score for each in found] == pytest.approx(
        [0.5987 * sure, 0.5 * (sure + unsure) / 2, 0.4013 * sure], abs=1e-4
    )
    assert all(each.box == (0, 0, 4, 8) for each in found)
    # Of a picture padded on the right: the mask is cut off there, then brought to the picture's size.
    [wide, *_] = instances(classes[:1], masks[:1], padded=(16, 16), inner=(16, 12), size=(32, 24))
    assert wide.mask_HW.shape == (32, 24)
    assert wide.box == (0, 0, 16, 32)


def test_a_random_mask2former_runs_at_any_shape(tmp_path: Path) -> None:
    from transformers import Mask2FormerConfig, SwinConfig

    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    small = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "num_attention_heads": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_feedforward_dim": 16, "dim_feedforward": 16}
    config = Mask2FormerConfig(backbone_config=swin, num_queries=10, num_labels=len(CLASSES), **small, **layers)
    model = InstanceNetwork(config)
    model.class_predictor.weight.data.mul_(100.0)  # some class is sure of itself
    model.criterion = torch.nn.Module()  # published checkpoints carry the loss's weights
    model.criterion.register_buffer("empty_weight", torch.ones(len(CLASSES) + 1))
    model.save_pretrained(tmp_path / "detector")
    detector = Mask2FormerDetector(tmp_path / "detector", short=64, long=100)
    assert detector.stand_in
    for size in ((64, 48), (90, 200)):
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        found = detector(Image.fromarray(noise))
        assert found
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        for each in found:
            assert each.mask_HW.shape == (size[1], size[0])
            assert each.mask_HW.any()
            assert 0 <= each.box[0] < each.box[2] <= size[0]
    config.num_labels = 3
    InstanceNetwork(config).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="expected COCO's 80 classes, found 3"):
        Mask2FormerDetector(tmp_path / "other")


def test_an_object_is_cut_out_on_grey() -> None:
    image = picture(("cup", "red", 5, 7), ("bus", "blue", 60, 40))
    mask = np.zeros((96, 128), bool)
    mask[7:27, 5:15] = True  # the left half of the cup
    cut = np.asarray(cut_out(image, Detection("cup", 0.9, (5, 7, 25, 27), mask)))
    assert cut.shape == (20, 20, 3)
    assert (cut[:, :10] == RGB["red"]).all()
    assert (cut[:, 10:] == 0x99).all()


def test_pictures_of_another_model_are_judged(tmp_path: Path) -> None:
    """Two tags, two pictures a prompt: half of the single objects right, all of the colours."""
    wanted = {
        "00000": [PICTURES["single_object"][True][0], PICTURES["single_object"][False][0]],
        "00001": [PICTURES["colors"][True][0]] * 2,
    }
    (tmp_path / "pictures").mkdir()
    for item, images in wanted.items():
        for seed, image in enumerate(images):
            image.save(tmp_path / "pictures" / f"{item}_{seed}.png")
    recipe = GenEvalRecipe(
        kind="evaluate",
        benchmark="geneval",
        run=str(tmp_path / "run"),
        data=str(prompts_file(tmp_path, ["single_object", "colors"])),
        images={"rectangles": str(tmp_path / "pictures")},
        seeds=(0, 1),
    )
    benchmark = GenEval(recipe, RectangleDetector(), NearestColour())
    result = run_benchmark(recipe, benchmark, RunFolder.open(recipe.run, recipe.model_dump(mode="json")))
    assert result is not None
    row = result.metrics["rectangles"]
    assert row["single_object"] == pytest.approx([0.5, math.nan, math.nan], nan_ok=True)  # one prompt: no interval
    assert row["colors"][0] == 1.0
    assert math.isnan(row["overall"])  # four tags have no picture
    assert result.stand_in
    assert result.judge == "GenEval-HF: rectangles; RGB"
    assert result.per_item["rectangles"]["correct"] == [0.5, 1.0]
    scores = (tmp_path / "run" / "scores" / "rectangles").glob("*.jsonl")
    [file] = scores
    assert "cup: expected 1, found 0" in file.read_text(encoding="utf-8")


def test_the_overall_accuracy_weighs_tags_equally() -> None:
    """A tag of three prompts and five of two equal ones: (2/3 + 1 + 0 + 1 + .5 + 0) / 6."""
    tags = ["counting"] * 3 + [tag for tag in TAGS if tag != "counting"] * 2
    row = accuracies(tags, [1, 1, 0, *[1, 0, 1, 0.5, 0] * 2])
    assert isinstance(row["overall"], list)
    value, low, high = row["overall"]
    assert value == pytest.approx((2 / 3 + 2.5) / 6)
    assert (low, high) == pytest.approx((2.5 / 6, 3.5 / 6))  # the three of counting may all be drawn wrong, or right


def test_weights_that_are_nowhere_stop_before_drawing(tmp_path: Path) -> None:
    recipe = GenEvalRecipe(
        kind="evaluate",
        benchmark="geneval",
        run=str(tmp_path / "run"),
        data=str(prompts_file(tmp_path)),
        images={"none": str(tmp_path)},
    )
    with pytest.raises(UserError, match=r"detector: facebook/mask2former.*hf download"):
        GenEval(recipe).check()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "mask2former"}')
    nothing = recipe.model_copy(update={"detector": str(tmp_path / "empty")})
    with pytest.raises(UserError, match=r"detector: .*empty: expected model.safetensors"):
        GenEval(nothing).check()
    (tmp_path / "empty" / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"colours: openai/clip-vit.*hf download"):
        GenEval(nothing).check()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(UserError, match=r"detector: .*empty: expected model_type 'mask2former', found 'detr'"):
        GenEval(nothing).check()


@pytest.mark.parametrize("colour", ["orange", "yellow", "blue", "purple"])
def test_clip_names_colours(colour: str) -> None:
    """With the CLIP of the emoji world, which knows these four of the ten (and takes some others for white)."""
    image = picture(("cup", colour, 40, 30), ("bus", "black", 80, 60))
    [cup] = [each for each in RectangleDetector()(image) if each.name == "cup"]
    namer = ClipColours(CLIP)
    assert namer(image, [cup, cup], "square") == [colour] * 2
    assert namer.stand_in
