"""mentor_rewards repeats a few facts of the emoji world, since it may not import it: they have to stay equal."""

from __future__ import annotations

from random import Random

import numpy as np
from mentor_rewards import blobs, palette, shape_match
from mentor_rewards.contract import RewardBatch

from mentor_base.data import shapes


def test_tables_are_equal() -> None:
    assert palette.COLOURS == shapes.COLOURS
    assert set(blobs.SHAPES) == set(shapes.SHAPES)
    assert shape_match.POSITIONS == shapes.POSITIONS
    assert shape_match.RELATIONS == shapes.RELATIONS


def test_forms_are_the_worlds() -> None:
    for shape in shapes.SHAPES:
        inside = shapes.stencil(shape, 32) > 127
        likeness = blobs.form_likeness(inside[np.ix_(inside.any(1), inside.any(0))])
        assert max(likeness, key=lambda name: likeness[name]) == shape
        assert likeness[shape] > 0.9


def test_drawn_scenes_score_full_and_others_do_not() -> None:
    scenes = [shapes.random_scene(Random(n), unseen=n % 2 == 1) for n in range(60)]
    images = [shapes.draw_scene(scene, Random(n)) for n, scene in enumerate(scenes)]
    facts = [scene.facts() for scene in scenes]

    def scores(metadata: list) -> np.ndarray:
        n = len(images)
        batch = RewardBatch(images, ["shapes"] * n, [()] * n, [None] * n, list(range(n)), metadata)
        return np.array(shape_match.ShapeMatch().score(batch).scores)

    assert scores(facts).min() > 0.9
    assert scores(facts).mean() > 0.99
    assert scores(facts[1:] + facts[:1]).mean() < 0.45
