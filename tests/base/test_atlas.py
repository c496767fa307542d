"""The committed atlas: complete, decodable, and split without leaks."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from mentor_base.data.atlas import FOLDER, Atlas
from mentor_base.errors import UserError

FLUENT = {"fluent-3d", "fluent-flat", "fluent-mono"}
SPLITS = ("train", "val", "unseen_subjects", "unseen_pairs")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return Atlas.load()


def test_the_files_belong_together() -> None:
    index = json.loads(gzip.decompress((FOLDER / "index.json.gz").read_bytes()))
    assert hashlib.sha256((FOLDER / "sprites.bin").read_bytes()).hexdigest() == index["sha256"]


def test_size_of_the_world(atlas: Atlas) -> None:
    assert len(atlas.styles) == 9
    assert len(atlas.subjects) == 1137
    assert len(atlas) > 8200
    assert len(set(atlas.style_names.values())) == 9
    assert len({subject.name for subject in atlas.subjects.values()}) == 1137, "names tell subjects apart"


def test_all_sprites_decode_and_show_something(atlas: Atlas) -> None:
    for subject, style in atlas.pairs("unseen_subjects") + atlas.pairs("unseen_pairs")[::3]:
        pixels = atlas.pixels(subject, style)
        assert pixels.shape == (64, 64, 4)
        assert (pixels[:, :, 3] > 128).mean() > 0.03, (subject, style)


def test_every_sprite_is_in_exactly_one_split(atlas: Atlas) -> None:
    counts = Counter(pair for split in SPLITS for pair in atlas.pairs(split))  # type: ignore[arg-type]
    assert set(counts.values()) == {1}
    assert sum(counts.values()) == len(atlas)


def test_families_do_not_cross_splits(atlas: Atlas) -> None:
    splits = defaultdict(set)
    for subject in atlas.subjects.values():
        splits[subject.family].add(subject.split)
    assert all(len(found) == 1 for found in splits.values())
    by_name = {subject.name: subject for subject in atlas.subjects.values()}
    assert by_name["cat"].family == by_name["black cat"].family == by_name["cat face"].family
    assert by_name["gold medal"].family == by_name["bronze medal"].family


def test_the_pictures_do_not_cross_splits(atlas: Atlas) -> None:
    """No drawing of an unseen subject or pair is, pixel for pixel, also a training picture."""
    train = {atlas.stored(*pair) for pair in atlas.pairs("train")}
    unseen = [pair for split in ("val", "unseen_subjects", "unseen_pairs") for pair in atlas.pairs(split)]  # type: ignore[arg-type]
    assert not [pair for pair in unseen if atlas.stored(*pair) in train]


def test_fluent_styles_are_held_out_together(atlas: Atlas) -> None:
    held = defaultdict(set)
    for subject, style in atlas.pairs("unseen_pairs"):
        held[subject].add(style)
        assert atlas.subjects[subject].split == "train"
    for subject, styles in held.items():
        drawn = {style for style in FLUENT if atlas.has(subject, style)}
        assert styles & FLUENT in (set(), drawn)
    left = Counter(subject for subject, _ in atlas.pairs("train"))
    assert min(left[subject] for subject in held) >= 2, "a held-out subject keeps two styles to refer to"


def test_decoded_pixels_are_shared_and_safe(atlas: Atlas) -> None:
    pair = atlas.pairs("train")[0]
    pixels = atlas.pixels(*pair)
    assert pixels is atlas.pixels(*pair)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0] = 1
    assert np.array_equal(np.asarray(atlas.sprite(*pair)), pixels)


def test_errors_name_what_is_near(atlas: Atlas) -> None:
    with pytest.raises(UserError, match="unknown style 'notto'; did you mean 'noto'"):
        atlas.sprite("1f98a", "notto")
    with pytest.raises(UserError, match="unknown style 'fluent3d'; did you mean 'fluent-3d'"):
        atlas.pairs("train", ["fluent3d"])
    absent = next(s for s in atlas.subjects if not atlas.has(s, "blob"))
    with pytest.raises(UserError, match="is not drawn in style 'blob'; drawn in: noto"):
        atlas.sprite(absent, "blob")


def test_licences_credit_every_package() -> None:
    index = json.loads(gzip.decompress((FOLDER / "index.json.gz").read_bytes()))
    text = (ROOT / "DATA_LICENSES.md").read_text()
    for name, package in index["packages"].items():
        assert f"{name} {package['version']}" in text
        assert package["licence"] in text
