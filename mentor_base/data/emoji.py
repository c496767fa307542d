"""The emoji world: every task of the paper drawn on the fly from the atlas, at 64x64 pixels.

``EmojiWorld().example(task, split, seed, index)`` is a pure function of its arguments (and of the settings). Pictures
are PIL RGB, masks 8-bit ("L", 255 on the subject).

    t2i             caption -> an emoji (plain, small at a named place, or two to four of them), or coloured shapes
    reconstruction  picture -> the same picture
    segmentation    scene of two things on a random ground + name -> the named one alone, in its place, on white; mask
    recovery        thing turned, shrunk, on a random ground + caption -> the thing upright, at full size; mask
    subject         reference in one style + name + wanted style -> the same subject drawn in the wanted style
    multi_image     two references -> both, composed as the text says

Splits (see atlas.py): ``unseen_subjects`` shows only subjects that train never showed; ``unseen_pairs`` asks for
(subject, style) pairs that train never showed, while references and bystanders are train pairs. Coloured shapes of
both unseen splits are (shape, colour) pairs that train never showed.

Example.meta, for rewards and evaluation; a key is absent where it does not apply:

    where            "emoji:subject/train/0/17": names the example in error lines
    kind             "emoji" | "shapes"
    background       the target's ground, a key of COLOURS
    background_rgb   the same as (r, g, b), 0..255
  emoji, one subject (all tasks but multi_image):
    subject_id       key of Atlas.subjects
    style            id of the target's style, one of Atlas.styles
    style_name       the words that the text uses for it
    reference_style  (subject) id of the style of the reference
    disguised        (recovery, subject) True: it is changed and not named (disguise.py); then without subject_id
    count, position  (t2i) int >= 2; a key of POSITIONS; only where the text claims them
  multi_image:
    subject_ids, styles   two of each, in the order of the references
    relation              "side by side" | "left of" | "right of" | "above" | "below", from the first to the second
  shapes (t2i):
    objects          list of {"shape", "colour", "rgb", "count", "position"}; position None where the text has none
    relation         "left of" | "right of" | "above" | "below", from objects[0] to objects[1]; absent for one object
    shape, colour, count, position    of the only object; absent for two objects
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, get_args

import numpy as np
from PIL import Image

from mentor_base.data import captions
from mentor_base.data.atlas import SIZE, Atlas, Subject
from mentor_base.data.disguise import NAME as DISGUISED_NAME
from mentor_base.data.disguise import Disguise
from mentor_base.data.grounds import random_ground
from mentor_base.data.layers import BACKGROUNDS, compose, flat, over, turned, vanishing_on
from mentor_base.data.schema import Example, Prompt
from mentor_base.data.shapes import COLOURS, NUMBERS, POSITIONS, RELATIONS, SHAPES, draw_scene, random_scene
from mentor_base.data.silhouettes import overlap, silhouettes
from mentor_base.errors import UserError, nearest
from mentor_base.settings import EmojiData, Split

SPLITS: tuple[str, ...] = get_args(Split)
WHITE_SHARE = 0.5
REFERENCE_WHITE_SHARE = 0.85
# Line art has no filled outline to cut out.
UNFILLED_STYLES = frozenset({"fluent-mono"})
SMALL = 30  # side of emoji that share a picture

Pair = tuple[str, str]


@dataclass(frozen=True)
class Pools:
    """What a split draws from.

    Attributes:
        targets: (subject, style) pairs that the split asks for.
        others: pairs for bystanders in scenes.
        filled: the targets that can be cut out.
        transfers: (target pair, styles of possible references).
    """

    targets: tuple[Pair, ...]
    others: tuple[Pair, ...]
    filled: tuple[Pair, ...]
    transfers: tuple[tuple[Pair, tuple[str, ...]], ...]


class EmojiWorld:
    """Examples of all tasks over the committed atlas.

    Args:
        settings: share of shapes in t2i, share of disguised training subjects, how far training's references agree
            with their targets, and the styles used (default: all).

    Raises:
        UserError: a style that the atlas does not have.
    """

    image_size = SIZE

    def __init__(self, settings: EmojiData | None = None) -> None:
        self.settings = EmojiData() if settings is None else settings
        self.atlas = Atlas.load()
        self.styles: tuple[str, ...] = self._checked_styles()
        self._pools: dict[str, Pools] = {}

    @cached_property
    def _tasks(self) -> Mapping[str, Callable[[Random, str], Example]]:
        return {
            "t2i": self._t2i,
            "reconstruction": self._reconstruction,
            "segmentation": self._segmentation,
            "recovery": self._recovery,
            "subject": self._subject,
            "multi_image": self._multi_image,
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that this world can draw."""
        return tuple(self._tasks)

    def example(self, task: str, split: str, seed: int, index: int) -> Example:
        """One example; the same arguments give the same example, on every machine.

        Raises:
            UserError: an unknown task or split.
        """
        where = f"emoji:{task}/{split}/{seed}/{index}"
        if task not in self._tasks:
            raise UserError(f"{where}: unknown task '{task}'; {nearest(task, self._tasks)}")
        if split not in SPLITS:
            raise UserError(f"{where}: unknown split '{split}'; {nearest(split, SPLITS)}")
        # A text seed is hashed with SHA-512, so neighbours share nothing.
        example = self._tasks[task](Random(where), split)
        facts = {"where": where, **example.meta}
        return Example(task, example.text, example.images, example.target, example.subject, example.mask, facts)

    def prompt(self, task: str, split: str, seed: int, index: int) -> Prompt:
        """What the example asks."""
        return self.example(task, split, seed, index).prompt()

    def corpus(self) -> list[str]:
        """What a text tokenizer has to know: every name, style, colour, shape and number, and captions of all tasks."""
        names = [subject.name for subject in self.atlas.subjects.values()]
        plurals = [many for many in map(captions.plural, names) if many]
        words = [word for subject in self.atlas.subjects.values() for word in subject.keywords]
        styles = [f"in {name} style" for name in self.atlas.style_names.values()]
        places = [captions.place_words(position) for position in POSITIONS]
        sample = [self.example(task, "train", 0, i).text for task in self._tasks for i in range(120)]
        lists = (names, plurals, words, styles, places, COLOURS, SHAPES, (s + "s" for s in SHAPES), NUMBERS.values())
        return [*sample, *(text for texts in lists for text in texts)]

    # ------------------------------------------------------------ tasks

    def _t2i(self, rng: Random, split: str) -> Example:
        if rng.random() < self.settings.shapes:
            return self._shapes(rng, split)
        pair = rng.choice(self._pool(split).targets)
        name, style = self._words(pair)
        ground = self._ground(rng, self._drawing(pair))
        meta = self._meta(pair, ground)
        many = captions.plural(name)
        roll = rng.random()
        if roll < 0.12:
            position = rng.choice(tuple(POSITIONS))
            target = self._placed(rng, pair, ground, position)
            text = captions.placed_caption(name, style, ground, position)
            return _row(text, target, name, meta | {"position": position})
        if roll < 0.27 and many is not None:
            count = rng.choice((2, 3, 4))
            target = self._repeated(rng, pair, ground, count)
            text = captions.counted_caption(many, style, ground, count)
            return _row(text, target, name, meta | {"count": count})
        text = captions.emoji_caption(rng, name, style, ground, self._thing(pair).keywords)
        return _row(text, over(self._drawing(pair), ground), name, meta)

    def _shapes(self, rng: Random, split: str) -> Example:
        scene = random_scene(rng, unseen=split.startswith("unseen"))
        meta = {"kind": "shapes", **scene.facts(), **_ground_facts(scene.background)}
        subject = f"{meta['colour']} {meta['shape']}" if "shape" in meta else None
        return _row(scene.words(), draw_scene(scene, rng, SIZE), subject, meta)

    def _reconstruction(self, rng: Random, split: str) -> Example:
        pair = rng.choice(self._pool(split).targets)
        drawing = self._drawing(pair)
        ground = self._ground(rng, drawing)
        picture = over(drawing, ground)
        text = captions.reconstruction_text(rng)
        return _row(text, picture, self._thing(pair).name, self._meta(pair, ground), (picture,))

    def _segmentation(self, rng: Random, split: str) -> Example:
        pools = self._pool(split)
        pair = rng.choice(pools.filled)
        other = self._bystander(rng, pools, pair[0])
        side, small = rng.randint(34, 48), rng.randint(22, 30)
        (left, top), (far_left, far_top) = _opposite_corners(rng, side, small)
        scene = random_ground(rng, SIZE)
        compose(scene, self._resized(other, small), far_left, far_top)
        sprite = self._resized(pair, side)
        compose(scene, sprite, left, top)  # last, so that all of it is seen
        alone = flat("white")
        compose(alone, sprite, left, top)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[top : top + side, left : left + side] = (sprite[:, :, 3] >= 128) * np.uint8(255)
        name = self._thing(pair).name
        text = captions.segmentation_text(rng, name)
        images = (Image.fromarray(scene),)
        return _row(text, Image.fromarray(alone), name, self._meta(pair, "white"), images, Image.fromarray(mask))

    def _recovery(self, rng: Random, split: str) -> Example:
        pair = rng.choice(self._pool(split).targets)
        disguise = self._disguise(rng, split)
        name, style = self._words(pair, disguise)
        drawing = self._drawing(pair, disguise)
        ground = self._ground(rng, drawing)
        askew = turned(drawing, rng.uniform(-45, 45), rng.uniform(0.55, 0.9))
        scene = random_ground(rng, SIZE)
        compose(scene, askew, rng.randint(0, SIZE - askew.shape[1]), rng.randint(0, SIZE - askew.shape[0]))
        mask = Image.fromarray((drawing[:, :, 3] >= 128) * np.uint8(255))
        text = captions.recovery_text(rng, name, style, ground)
        meta = self._meta(pair, ground, disguise)
        subject = None if disguise else name
        return _row(text, over(drawing, ground), subject, meta, (Image.fromarray(scene),), mask)

    def _subject(self, rng: Random, split: str) -> Example:
        transfers = self._pool(split).transfers
        if not transfers:
            raise UserError(f"the subject task needs two styles or more, found {', '.join(self.styles)}")
        pair, references = rng.choice(transfers)
        reference = (pair[0], rng.choice(references))
        disguise = self._disguise(rng, split)
        name, style = self._words(pair, disguise)
        wanted, shown = self._drawing(pair, disguise), self._drawing(reference, disguise)
        ground = self._ground(rng, wanted)
        shown_on = self._ground(rng, shown, white_share=REFERENCE_WHITE_SHARE)
        meta = self._meta(pair, ground, disguise) | {"reference_style": reference[1]}
        text = captions.subject_text(rng, name, style, ground)
        subject = None if disguise else name
        return _row(text, over(wanted, ground), subject, meta, (over(shown, shown_on),))

    def _multi_image(self, rng: Random, split: str) -> Example:
        pools = self._pool(split)
        first = rng.choice(pools.targets)
        pairs = (first, self._bystander(rng, pools, first[0]))
        relation = rng.choice(("side by side", *RELATIONS))
        drawings = tuple(map(self._drawing, pairs))
        ground = self._ground(rng, *drawings)
        along, across = sorted((rng.randint(0, 3), rng.randint(SIZE - SMALL - 3, SIZE - SMALL))), rng.randint(8, 26)
        if relation in ("right of", "below"):
            along.reverse()
        target = flat(ground)
        for pair, place in zip(pairs, along, strict=True):
            left, top = (across, place) if relation in ("above", "below") else (place, across)
            compose(target, self._resized(pair, SMALL), left, top)
        images = tuple(over(each, self._ground(rng, each, white_share=REFERENCE_WHITE_SHARE)) for each in drawings)
        names = (self._thing(pairs[0]).name, self._thing(pairs[1]).name)
        meta = {
            "kind": "emoji",
            "subject_ids": tuple(pair[0] for pair in pairs),
            "styles": tuple(pair[1] for pair in pairs),
            "relation": relation,
            **_ground_facts(ground),
        }
        return _row(captions.pair_text(rng, names, relation, ground), Image.fromarray(target), None, meta, images)

    # ------------------------------------------------------------ parts

    def _placed(self, rng: Random, pair: Pair, ground: str, position: str) -> Image.Image:
        """A small sprite whose centre lies in the named third."""
        target = flat(ground)
        left, top = ((1, (SIZE - SMALL) // 2, SIZE - SMALL - 1)[third] for third in POSITIONS[position])
        left, top = (min(max(edge + rng.randint(-2, 2), 0), SIZE - SMALL) for edge in (left, top))
        compose(target, self._resized(pair, SMALL), left, top)
        return Image.fromarray(target)

    def _repeated(self, rng: Random, pair: Pair, ground: str, count: int) -> Image.Image:
        """Two to four small sprites in rows, each row centred."""
        target = flat(ground)
        sprite = self._resized(pair, SMALL)
        rows = {2: (2,), 3: rng.choice(((2, 1), (1, 2))), 4: (2, 2)}[count]
        for r, columns in enumerate(rows):
            top = (SIZE - SMALL) // 2 if len(rows) == 1 else (1, SIZE - SMALL - 1)[r]
            lefts = ((SIZE - SMALL) // 2,) if columns == 1 else (1, SIZE - SMALL - 1)
            for left in lefts:
                compose(target, sprite, left, top)
        return Image.fromarray(target)

    def _drawing(self, pair: Pair, disguise: Disguise | None = None) -> np.ndarray:
        """uint8 [64, 64, 4], straight alpha."""
        pixels = self.atlas.pixels(*pair)
        return pixels if disguise is None else disguise(pixels)

    def _disguise(self, rng: Random, split: str) -> Disguise | None:
        """For a training subject now and then; the other splits show what a user would."""
        share = self.settings.disguise
        if split != "train" or not share or rng.random() >= share:
            return None
        return Disguise.random(rng)

    def _resized(self, pair: Pair, side: int) -> np.ndarray:
        return np.asarray(self.atlas.sprite(*pair).resize((side, side), Image.Resampling.BOX))

    def _bystander(self, rng: Random, pools: Pools, subject: str) -> Pair:
        """Something of another family."""
        family = self.atlas.subjects[subject].family
        while True:
            pair = rng.choice(pools.others)
            if self.atlas.subjects[pair[0]].family != family:
                return pair

    def _ground(self, rng: Random, *drawings: np.ndarray, white_share: float = WHITE_SHARE) -> str:
        """White, or a colour in which none of the drawings would vanish."""
        if rng.random() < white_share:
            return "white"
        hidden = {name for drawing in drawings for name in vanishing_on(drawing)}
        seen = [name for name in BACKGROUNDS if name not in hidden]
        return rng.choice(seen) if seen else "white"

    def _thing(self, pair: Pair) -> Subject:
        return self.atlas.subjects[pair[0]]

    def _words(self, pair: Pair, disguise: Disguise | None = None) -> tuple[str, str]:
        return DISGUISED_NAME if disguise else self._thing(pair).name, self.atlas.style_names[pair[1]]

    def _meta(self, pair: Pair, ground: str, disguise: Disguise | None = None) -> dict[str, Any]:
        subject, style = pair
        known = {"disguised": True} if disguise else {"subject_id": subject}
        words = {"style": style, "style_name": self.atlas.style_names[style]}
        return {"kind": "emoji", **known, **words, **_ground_facts(ground)}

    # ------------------------------------------------------------ splits

    def _checked_styles(self) -> tuple[str, ...]:
        wanted = self.settings.styles
        if wanted is None:
            return self.atlas.styles
        for style in wanted:
            if style not in self.atlas.styles:
                raise UserError(f"data.styles: unknown style '{style}'; {nearest(style, self.atlas.styles)}")
        return tuple(style for style in self.atlas.styles if style in wanted)

    def _pool(self, split: str) -> Pools:
        pools = self._pools.get(split)
        if pools is None:
            pools = self._pools[split] = self._make_pools(split)
        return pools

    def _make_pools(self, split: str) -> Pools:
        targets = self.atlas.pairs(split, self.styles)  # type: ignore[arg-type]
        if not targets:
            raise UserError(f"data.styles: no picture of split '{split}' is in {', '.join(self.styles)}")
        others = self.atlas.pairs("train", self.styles) if split == "unseen_pairs" else targets
        drawn: dict[str, list[str]] = defaultdict(list)
        for subject, style in others:
            drawn[subject].append(style)
        alike = self._alike(targets) if split == "train" and self.settings.agreement else None
        transfers = []
        for pair in targets:
            references = tuple(style for style in drawn[pair[0]] if style != pair[1])
            if alike is not None:
                references = tuple(style for style in references if alike(pair, (pair[0], style)))
            if references:
                transfers.append((pair, references))
        filled = tuple(pair for pair in targets if pair[1] not in UNFILLED_STYLES)
        return Pools(targets, others, filled or targets, tuple(transfers))

    def _alike(self, pairs: Sequence[Pair]) -> Callable[[Pair, Pair], bool]:
        """Whether two of these drawings overlap as far as ``settings.agreement`` asks."""
        alphas = [self.atlas.pixels(*pair)[:, :, 3] for pair in pairs]
        outlines = dict(zip(pairs, silhouettes(alphas), strict=True))
        return lambda first, second: overlap(outlines[first], outlines[second]) >= self.settings.agreement


def _ground_facts(ground: str) -> dict[str, Any]:
    return {"background": ground, "background_rgb": COLOURS[ground]}


def _opposite_corners(rng: Random, side: int, small: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Places of a large and a small square that overlap as little as they can."""
    right, low = rng.random() < 0.5, rng.random() < 0.5
    slack = rng.randint(0, 2)
    near = [SIZE - side - slack if far else slack for far in (right, low)]
    away = [0 if far else SIZE - small for far in (right, low)]
    return (near[0], near[1]), (away[0], away[1])


def _row(
    text: str,
    target: Image.Image,
    subject: str | None,
    meta: dict[str, Any],
    images: tuple[Image.Image, ...] = (),
    mask: Image.Image | None = None,
) -> Example:
    """An Example whose task is set by EmojiWorld.example."""
    return Example("t2i", text, images, target, subject, mask, meta)
