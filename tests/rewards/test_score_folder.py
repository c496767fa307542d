"""Scoring folders, and ``python -m mentor_rewards``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mentor_rewards.__main__ import main
from mentor_rewards.testing import sample_batch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n, image in enumerate(sample_batch(count=3).images):
        image.save(tmp_path / f"{n}.png")
    rows = [
        {"file": "2.png", "prompt": "b", "metadata": {"background": "yellow"}},
        {"file": "0.png", "prompt": "a", "metadata": {"background": "red"}},
        {"file": "1.png", "prompt": "a"},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_rows_in_order_with_reasons(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["score", "--reward", "colour_match", "--reward", "jpeg_size", "--option", "quality=50", str(folder)]) == 0
    )
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["file"] for row in rows] == ["2.png", "0.png", "1.png"]
    assert rows[2]["scores"]["colour_match"] is None
    assert rows[2]["reasons"] == {"colour_match": "does not apply: no metadata.background"}
    assert rows[1]["scores"]["colour_match"] > 0.3
    assert "colour_match mean=" in err


def test_without_listing_all_pictures_are_scored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "prompts.jsonl").unlink()
    assert main(["score", "--reward", "jpeg_size", str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "reward", "message"),
    [
        (
            '{"file": "0.png", "promt": "a"}',
            "jpeg_size",
            "prompts.jsonl:1: unknown key 'promt'; did you mean 'prompt'?",
        ),
        ('{"prompt": "a"}', "jpeg_size", "prompts.jsonl:1: file: Field required"),
        ("{file}", "jpeg_size", "prompts.jsonl:1: not JSON"),
        ("", "jpeg_size", "expected one JSON object per line, found none"),
        ('{"file": "9.png"}', "jpeg_size", "9.png: no such picture"),
        ('{"file": "prompts.jsonl"}', "jpeg_size", "not a readable picture"),
        ('{"file": "0.png", "metadata": {"ground": "red"}}', "colour_match", "needs metadata.background"),
        ('{"file": "0.png"}', "color_match", "did you mean 'colour_match'?"),
    ],
)
def test_bad_input(folder: Path, capsys: pytest.CaptureFixture[str], line: str, reward: str, message: str) -> None:
    (folder / "prompts.jsonl").write_text(line)
    assert main(["score", "--reward", reward, str(folder)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--reward", "jpeg_size", str(tmp_path)]) == 2
    assert "expected pictures" in capsys.readouterr().err


def test_check_finds_a_broken_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.py").write_text(
        "from mentor_rewards import Reward, RewardOutput, RewardSpec\n"
        "class Bad(Reward):\n"
        "    spec = RewardSpec(name='bad', version='1', range=(0.0, 1.0))\n"
        "    def score(self, batch):\n"
        "        for image in batch.images:\n"
        "            image.putpixel((0, 0), (1, 2, 3))\n"
        "        return RewardOutput([2.0 * n for n in range(len(batch))])\n"
    )
    assert main(["check", f"{tmp_path}/bad.py:Bad"]) == 1
    failed = {line[5:].split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")}
    assert failed == {
        "scores stay in the declared range",
        "scores follow the order of the pictures",
        "a batch of one equals a batch of many",
        "odd sizes and modes are fine",
        "inputs are not changed",
    }
