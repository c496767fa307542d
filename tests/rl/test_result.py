"""A benchmark's result: what the terminal says beside the numbers, and files that are none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mentor_base.errors import UserError
from mentor_rl.evaluate.result import Result


def printed(result: Result) -> str:
    out = io.StringIO()
    Console(width=80, file=out).print(result.table())
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_parts_stand_below_their_row_and_splits_above_theirs() -> None:
    whole = Result("toy", {"fox": {"CP": 0.5}, "fox · animal [x]": {"CP": [0.25, 0.1, 0.4]}})
    lines = printed(whole).splitlines()
    assert lines[2].split() == ["fox", "0.500"]
    assert lines[3].startswith("  animal [x]")
    assert lines[3].endswith("0.250")
    splits = Result("toy", {f"{row} · {part}": {"CP": 1.0} for part in ("seen", "unseen") for row in ("before", "a")})
    names = [line.split()[0] for line in printed(splits).splitlines()[2:8]]
    assert names == ["seen", "before", "a", "unseen", "before", "a"]


def test_the_terminal_says_what_a_number_must_not_be_read_without() -> None:
    gap = Result(
        "toy",
        {"fox": {"CP": 0.5}},
        judge="j 1",
        stand_in=True,
        coverage={"items": 8, "scored": 7},
        notes=("the first 8 of 90 items only (limit): not the whole benchmark", "another note"),
    )
    text = " ".join(printed(gap).split())
    assert "judge (a stand-in: not comparable with published numbers): j 1" in text
    assert "scored: 7 of 8 pictures; the others are left out" in text
    assert "the first 8 of 90 items only (limit)" in text
    assert "another note" not in text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            b'{"benchmark": "x", "metrics": [1]}',
            "metrics: expected row -> name -> a number, a word or [mean, low, high]",
        ),
        (b'{"benchmark": "x", "metrics": {"a": 5}}', "metrics: expected row -> name -> a number"),
        (b'{"benchmark": "x", "metrics": {"a": {"CP": [0.5]}}}', "metrics.a.CP: expected a number, a word or [mean"),
        (b'{"benchmark": "x", "metrics": {}, "per_item": {"a": {"CP": 1}}}', "per_item.a.CP: expected a list, found 1"),
        (
            b'{"benchmark": "x", "metrics": {}, "per_item": {"a": {"item": ["i"], "CP": [1, 2]}}}',
            "per_item.a: expected columns of one length, found [1, 2]",
        ),
        (b"\xff\xfe\x00", "found no valid JSON: 'utf-8' codec"),
    ],
)
def test_files_of_another_form_are_one_line(tmp_path: Path, text: bytes, line: str) -> None:
    (tmp_path / "r.json").write_bytes(text)
    with pytest.raises(UserError) as caught:
        Result.read(tmp_path / "r.json")
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="found a folder"):
        Result.read(tmp_path)
