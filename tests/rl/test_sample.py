"""``mentor sample``: prompts as users write them, and files as they asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.settings import Sampling
from mentor_rl.pictures import open_picture
from mentor_rl.sample import draw_samples, numbered, user_prompt

RED = Image.new("RGB", (32, 32), "red")


@pytest.mark.parametrize(
    ("text", "pictures", "expected"),
    [
        ("a fox", 0, "a fox"),
        ("a fox", 1, "<image> a fox"),
        ("a fox", 2, "<image> <image> a fox"),
        ("this fox <image> in line art", 1, "this fox <image> in line art"),
    ],
)
def test_marks_are_put_in_front_of_a_text_without_any(text: str, pictures: int, expected: str) -> None:
    assert user_prompt(text, [RED] * pictures).text == expected


@pytest.mark.parametrize(
    ("text", "pictures", "line"),
    [
        ("<image> and <image>", 1, "--text: expected one <image> mark per picture, found 2 marks and 1 pictures"),
        ("<image> a fox", 2, "--text: expected one <image> mark per picture, found 1 marks and 2 pictures"),
        (" ", 1, "--text: expected a caption, found an empty text"),
        ("", 0, "--text: expected a caption, found an empty text"),
    ],
)
def test_prompts_that_do_not_fit_their_pictures(text: str, pictures: int, line: str) -> None:
    with pytest.raises(UserError) as caught:
        user_prompt(text, [RED] * pictures)
    assert str(caught.value) == line


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "empty.png").touch()
    expected = {
        "none.png": "expected a picture, found no such file",
        "text.png": "expected a picture, found a file of another kind",
        "empty.png": "expected a picture, found a file of another kind",
        "cut.png": "cannot read this picture: ",
        ".": "expected a picture, found a folder",
    }
    for name, reason in expected.items():
        with pytest.raises(UserError) as caught:
            open_picture(tmp_path / name)
        assert f"{tmp_path / name}: {reason}" in str(caught.value)


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_names_of_several_samples() -> None:
    assert numbered(Path("a/out.png"), 1) == [Path("a/out.png")]
    assert numbered(Path("a/out.png"), 2) == [Path("a/out_00.png"), Path("a/out_01.png")]
    assert numbered(Path("out.png"), 101)[-1] == Path("out_100.png")


def test_a_file_name_without_a_format_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a picture name that ends in"):
        draw_samples(tmp_path / "no_checkpoint", "a fox", [], tmp_path / "out.txt")


def test_samples_are_written_and_reproducible(random_policy: Path, tmp_path: Path) -> None:
    reference = tmp_path / "red.png"
    RED.save(reference)
    first = draw_samples(random_policy, "a fox", [reference], tmp_path / "new" / "a.png", number=2)
    again = draw_samples(random_policy, "a fox", [reference], tmp_path / "b.png", number=2)
    other = draw_samples(
        random_policy, "a fox", [reference], tmp_path / "c.png", number=2, sampling=Sampling(seed=1, guidance_scale=2)
    )
    pictures = [[Image.open(file).tobytes() for file in files] for files in (first, again, other)]
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]
    assert pictures[0][0] != pictures[0][1]


def test_a_grid_shows_the_reference_first(random_policy: Path, tmp_path: Path) -> None:
    reference = tmp_path / "red.png"
    RED.resize((90, 90)).save(reference)
    draw_samples(random_policy, "a fox", [reference], tmp_path / "sheet.png", number=7, grid=True)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > sheet.height > sheet.width / 4  # two rows: 6 cells and 2
    assert sheet.getpixel((40, 40)) == (255, 0, 0)
