"""The emoji world: deterministic, without leaks, and its pictures show what its captions claim."""

from __future__ import annotations

import hashlib
from collections import deque

import numpy as np
import pytest

from mentor_base.data import captions
from mentor_base.data.disguise import NAME, Disguise
from mentor_base.data.emoji import SPLITS, EmojiWorld
from mentor_base.data.mixture import MixtureDataset, PromptList, world_of
from mentor_base.data.schema import IMAGE_MARK, Example
from mentor_base.data.shapes import COLOURS, POSITIONS, RELATIONS
from mentor_base.data.silhouettes import overlap, silhouettes
from mentor_base.errors import UserError
from mentor_base.settings import EmojiData, Mixture

TASKS = ("t2i", "reconstruction", "segmentation", "recovery", "subject", "multi_image")


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return EmojiWorld()


@pytest.fixture(scope="module")
def shapes() -> EmojiWorld:
    return EmojiWorld(EmojiData(shapes=1.0))


def fingerprint(example: Example) -> str:
    parts = [example.task, example.text, repr(sorted(example.meta.items()))]
    pictures = [*example.images, example.target, *([example.mask] if example.mask else [])]
    return hashlib.sha256("|".join(parts).encode() + b"".join(p.tobytes() for p in pictures)).hexdigest()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TASKS)
def test_examples_are_valid(world: EmojiWorld, task: str, split: str) -> None:
    for index in range(40):
        example = world.example(task, split, 7, index)
        assert example.task == task
        assert example.text == example.text.lower()
        assert example.meta["where"] == f"emoji:{task}/{split}/7/{index}"
        assert len(example.images) == {"t2i": 0, "multi_image": 2}.get(task, 1)
        for picture in (*example.images, example.target):
            assert (picture.mode, picture.size) == ("RGB", (64, 64))
        background = example.meta["background"]
        assert COLOURS[background] == example.meta["background_rgb"]
        named = f"on {'an' if background == 'orange' else 'a'} {background} background" in example.text
        if task not in ("reconstruction", "segmentation"):
            assert named == (background != "white"), "captions name every ground but white"
        if task in ("t2i", "recovery", "subject") and example.meta["kind"] == "emoji":
            assert example.meta["style_name"] in example.text


def test_examples_depend_on_nothing_but_the_arguments() -> None:
    fresh, used = EmojiWorld(), EmojiWorld()
    for index in range(50):
        used.example("subject", "val", 1, index)
    keys = [(task, split, 3, 11) for task in TASKS for split in SPLITS]
    backwards = {key: fingerprint(used.example(*key)) for key in reversed(keys)}
    assert [fingerprint(fresh.example(*key)) for key in keys] == [backwards[key] for key in keys]
    assert len(set(backwards.values())) == len(keys)
    assert fingerprint(fresh.example("t2i", "train", 0, 0)) != fingerprint(fresh.example("t2i", "train", 1, 0))


def test_unseen_things_never_enter_training(world: EmojiWorld) -> None:
    hidden = {s for s, subject in world.atlas.subjects.items() if subject.split != "train"}
    for task in TASKS[1:]:
        for index in range(60):
            train = world.example(task, "train", 0, index).meta
            unseen = world.example(task, "unseen_subjects", 0, index).meta
            pair = world.example(task, "unseen_pairs", 0, index).meta
            if task == "multi_image":
                assert not hidden & set(train["subject_ids"])
                assert set(unseen["subject_ids"]) <= hidden
                assert (pair["subject_ids"][0], pair["styles"][0]) in world.atlas.held_out
                continue
            assert train["subject_id"] not in hidden
            assert (train["subject_id"], train["style"]) not in world.atlas.held_out
            assert world.atlas.subjects[unseen["subject_id"]].split == "unseen_subjects"
            assert (pair["subject_id"], pair["style"]) in world.atlas.held_out
            if task == "subject":
                for meta in (train, unseen, pair):
                    assert meta["reference_style"] != meta["style"]
                assert (pair["subject_id"], pair["reference_style"]) not in world.atlas.held_out
                assert (train["subject_id"], train["reference_style"]) not in world.atlas.held_out


def test_unseen_shapes_never_enter_training(shapes: EmojiWorld) -> None:
    def pairs(split: str) -> set[tuple[str, str]]:
        metas = [shapes.example("t2i", split, 0, i).meta for i in range(250)]
        return {(thing["shape"], thing["colour"]) for meta in metas for thing in meta["objects"]}

    assert not pairs("train") & pairs("unseen_pairs")
    assert {shape for shape, _ in pairs("train")} == {shape for shape, _ in pairs("train") | pairs("unseen_pairs")}
    assert len(pairs("unseen_subjects")) >= 5


def components(mask_HW: np.ndarray) -> list[np.ndarray]:
    """8-connected parts of a mask, as [n, 2] arrays of (row, column)."""
    left = mask_HW.copy()
    found = []
    while left.any():
        row, column = np.argwhere(left)[0]
        left[row, column] = False
        queue, part = deque([(row, column)]), []
        while queue:
            row, column = queue.popleft()
            part.append((row, column))
            for r, c in ((row + y, column + x) for y in (-1, 0, 1) for x in (-1, 0, 1)):
                if 0 <= r < 64 and 0 <= c < 64 and left[r, c]:
                    left[r, c] = False
                    queue.append((r, c))
        found.append(np.array(part))
    return found


def test_shapes_drawn_are_shapes_claimed(shapes: EmojiWorld) -> None:
    """Counts, places and relations read back from the pixels, as mentor_base/data/shapes.py says."""
    seen = set()
    for index in range(300):
        example = shapes.example("t2i", ("train", "unseen_pairs")[index % 2], 5, index)
        meta = example.meta
        pixels = np.asarray(example.target)
        assert tuple(pixels[0, 0]) == meta["background_rgb"]
        palette = np.array([meta["background_rgb"], *(thing["rgb"] for thing in meta["objects"])])
        distances = ((pixels[:, :, None].astype(int) - palette) ** 2).sum(-1)
        assert (distances.min(-1) > 0).mean() < 0.1, "only edges are of a mixed colour"
        centres = []
        for k, thing in enumerate(meta["objects"], start=1):
            assert f"{thing['colour']} {thing['shape']}" in example.text
            parts = [part for part in components(distances[:, :, k] == 0) if len(part) >= 20]
            assert len(parts) == thing["count"], example.text
            boxes = [(part.min(0) + part.max(0)) / 2 for part in parts]
            centres.append(boxes[0])
            if thing["position"] is not None:
                thirds = tuple(int(value // (64 / 3)) for value in boxes[0][::-1])
                assert thirds == POSITIONS[thing["position"]], example.text
                assert thing["position"] in example.text
        if "relation" in meta:
            assert meta["relation"] in example.text
            step = (centres[0] - centres[1])[::-1] * RELATIONS[meta["relation"]]
            assert step.max() >= 16
        seen.add((len(meta["objects"]), meta.get("count"), meta.get("position") is not None))
    assert {(1, 1, False), (1, 1, True), (1, 2, False), (1, 3, False), (1, 4, False), (2, None, False)} <= seen


def test_emoji_stand_where_the_caption_says(world: EmojiWorld) -> None:
    placed = 0
    for index in range(300):
        example = world.example("t2i", "train", 2, index)
        if example.meta["kind"] == "emoji" and "position" in example.meta:
            inked = np.argwhere((np.asarray(example.target) != example.meta["background_rgb"]).any(-1))
            row, column = (inked.min(0) + inked.max(0)) / 2
            wanted = POSITIONS[example.meta["position"]]
            assert abs(column / 64 * 3 - wanted[0] - 0.5) < 0.8
            assert abs(row / 64 * 3 - wanted[1] - 0.5) < 0.8
            placed += 1
    assert placed > 10


def test_segmentation_cuts_out_what_stands_in_the_scene(world: EmojiWorld) -> None:
    same = []
    for index in range(60):
        example = world.example("segmentation", "train", 4, index)
        assert example.mask is not None
        assert example.mask.mode == "L"
        mask = np.asarray(example.mask) == 255
        scene, target = np.asarray(example.images[0]).astype(int), np.asarray(example.target).astype(int)
        assert mask.mean() > 0.02
        away = np.abs(target - 255).max(-1) > 128
        assert not (away & ~mask).any(), "the ground is blank outside the mask"
        same.append((np.abs(scene - target)[mask].max(-1) <= 2).mean())
        assert example.meta["style"] != "fluent-mono"
    assert np.mean(same) > 0.8, "the same pixels in scene and target, but for soft edges"


def test_recovery_mask_is_the_target(world: EmojiWorld) -> None:
    for index in range(20):
        example = world.example("recovery", "val", 0, index)
        assert example.mask is not None
        alpha = world.atlas.pixels(example.meta["subject_id"], example.meta["style"])[:, :, 3]
        assert np.array_equal(np.asarray(example.mask) == 255, alpha >= 128)
        clear = np.asarray(example.target)[alpha == 0]
        assert (clear == example.meta["background_rgb"]).all()


def test_disguise_changes_all_drawings_of_a_subject_alike() -> None:
    drawing = np.zeros((64, 64, 4), np.uint8)
    drawing[8:16, 4:24] = (255, 0, 0, 255)
    mirrored = Disguise(mirrored=True, quarter_turns=0, hue=0, width=1.0, height=1.0)(drawing)
    assert (mirrored == drawing[:, ::-1]).all()
    turned = Disguise(mirrored=False, quarter_turns=1, hue=0, width=1.0, height=1.0)(drawing)
    assert (turned == np.rot90(drawing)).all()
    recoloured = Disguise(mirrored=False, quarter_turns=0, hue=85, width=1.0, height=1.0)(drawing)
    assert recoloured[10, 10, 1] > 250 > 10 > recoloured[10, 10, 0], "a third of the circle on, red is green"
    squeezed = Disguise(mirrored=False, quarter_turns=0, hue=0, width=0.75, height=1.0)(drawing)
    assert squeezed[8:16, 11:26, 3].min() == 255
    assert squeezed[:, :, 3].sum() == 0.75 * drawing[:, :, 3].sum()


def test_disguised_subjects_are_nameless_and_appear_in_training_only() -> None:
    open_world, masked = EmojiWorld(), EmojiWorld(EmojiData(disguise=1.0))
    for task in ("subject", "recovery"):
        for index in range(20):
            example = masked.example(task, "train", 7, index)
            assert example.meta["disguised"]
            assert "subject_id" not in example.meta
            assert example.subject is None
            assert f" {NAME} " in f" {example.text} "
            assert example.meta["style_name"] in example.text
            held_out = masked.example(task, "unseen_subjects", 7, index)
            assert fingerprint(held_out) == fingerprint(open_world.example(task, "unseen_subjects", 7, index))
    now_and_then = EmojiWorld(EmojiData(disguise=0.3))
    disguised = ["disguised" in now_and_then.example("subject", "train", 7, i).meta for i in range(200)]
    assert 40 < sum(disguised) < 80


def test_silhouettes_are_filled_and_overlap_as_they_lie() -> None:
    ring = np.zeros((64, 64), np.uint8)
    ring[8:40, 8:40] = 255
    ring[16:32, 16:32] = 0
    disc = np.zeros((64, 64), np.uint8)
    disc[8:40, 8:40] = 255
    half = np.zeros((64, 64), np.uint8)
    half[8:40, 8:24] = 255
    outlines = silhouettes([ring, disc, half])
    assert (outlines[0] == outlines[1]).all()
    assert overlap(outlines[0], outlines[1]) == 1.0
    assert overlap(outlines[0], outlines[2]) == 0.5


def test_training_references_agree_with_their_targets_where_asked_to() -> None:
    styles = ("noto", "blob", "twemoji")
    world, plain = EmojiWorld(EmojiData(styles=styles, agreement=0.8)), EmojiWorld(EmojiData(styles=styles))
    for index in range(30):
        meta = world.example("subject", "train", 7, index).meta
        drawn = [world.atlas.pixels(meta["subject_id"], meta[key])[:, :, 3] for key in ("style", "reference_style")]
        assert overlap(*silhouettes(drawn)) >= 0.8
        held_out = world.example("subject", "val", 7, index)
        assert fingerprint(held_out) == fingerprint(plain.example("subject", "val", 7, index))


def test_reconstruction_asks_for_its_own_picture(world: EmojiWorld) -> None:
    example = world.example("reconstruction", "val", 0, 0)
    assert example.images[0].tobytes() == example.target.tobytes()


def test_styles_can_be_restricted() -> None:
    world = EmojiWorld(EmojiData(styles=("noto", "blob")))
    for index in range(30):
        meta = world.example("subject", "train", 0, index).meta
        assert {meta["style"], meta["reference_style"]} == {"noto", "blob"}
    with pytest.raises(UserError, match=r"data.styles: unknown style 'nato'; did you mean 'noto'"):
        EmojiWorld(EmojiData(styles=("nato",)))
    with pytest.raises(UserError, match="needs two styles"):
        EmojiWorld(EmojiData(styles=("noto",))).example("subject", "train", 0, 0)


def test_errors_name_what_is_near(world: EmojiWorld) -> None:
    with pytest.raises(UserError, match="unknown task 'subjects'; did you mean 'subject'"):
        world.example("subjects", "train", 0, 0)
    with pytest.raises(UserError, match="unknown split 'unseen'; did you mean 'unseen_pairs'"):
        world.example("subject", "unseen", 0, 0)


def test_corpus_holds_every_word(world: EmojiWorld) -> None:
    corpus = world.corpus()
    assert corpus == EmojiWorld().corpus()
    known = set().union(*(words(text) for text in corpus))
    for task in TASKS:
        for index in range(100):
            assert words(world.example(task, "unseen_subjects", 9, index).text) <= known


def words(text: str) -> set[str]:
    return set(text.replace(IMAGE_MARK, " ").replace(",", " ").replace(":", " ").split())


def test_captions_are_short(world: EmojiWorld) -> None:
    lengths = [len(world.example(task, "train", 0, i).text.split()) for task in TASKS for i in range(100)]
    assert np.median(lengths) < 14
    assert max(lengths) <= 24


@pytest.mark.parametrize(
    ("name", "article", "many"),
    [
        ("fox", "a fox", "foxes"),
        ("owl", "an owl", "owls"),
        ("unicorn", "a unicorn", "unicorns"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("glasses", "glasses", None),
        ("computer mouse", "a computer mouse", "computer mice"),
        ("house with garden", "a house with garden", None),
        ("strawberry", "a strawberry", "strawberries"),
        ("bus", "a bus", "buses"),
        ("polar bear", "a polar bear", "polar bears"),
    ],
)
def test_grammar(name: str, article: str, many: str | None) -> None:
    assert captions.an(name) == article
    assert captions.plural(name) == many


def test_mixture_is_a_pure_function_of_seed_and_index() -> None:
    mixture = Mixture(weights={"t2i": 0.45, "segmentation": 0.15, "recovery": 0.15, "subject": 0.25})
    world = world_of(mixture.data)
    one, other = (MixtureDataset(mixture, "train", 5, 2000, world) for _ in range(2))
    assert [fingerprint(one[i]) for i in (0, 7, 1999)] == [fingerprint(other[i]) for i in (0, 7, 1999)]
    drawn = [one.task_at(i) for i in range(2000)]
    assert abs(drawn.count("t2i") / 2000 - 0.45) < 0.04
    assert len(one) == 2000
    with pytest.raises(IndexError):
        one[2000]


def test_mixture_drops_the_text_only_where_the_picture_says_it_all() -> None:
    mixture = Mixture(weights={"subject": 1.0, "t2i": 1.0, "reconstruction": 1.0, "recovery": 1.0}, image_only=1.0)
    for example in (MixtureDataset(mixture, "val", 0, 30)[i] for i in range(30)):
        assert (example.text == IMAGE_MARK) == (example.task in ("reconstruction", "recovery"))


def test_prompts_carry_the_facts_that_rewards_need() -> None:
    prompts = PromptList(EmojiData(), {"subject": 1.0, "t2i": 1.0}, "unseen_pairs", 3, 40)
    for i in range(40):
        prompt = prompts[i]
        assert prompt.meta["task"] in ("subject", "t2i")
        if prompt.meta["task"] == "subject":
            assert {"subject_id", "style", "reference_style", "background"} <= set(prompt.meta)
            assert len(prompt.images) == 1
        elif prompt.meta["kind"] == "shapes":
            assert prompt.meta["objects"]
    world = prompts.world
    where = prompts.task_at(3), "unseen_pairs", 3, 3
    assert world.example(*where).text == world.prompt(*where).text == prompts[3].text


def test_mixture_refuses_tasks_that_the_world_lacks() -> None:
    with pytest.raises(UserError, match=r"weights.editing: expected a task of the data, known: "):
        PromptList(EmojiData(), {"editing": 1.0}, "train", 0, 1)
