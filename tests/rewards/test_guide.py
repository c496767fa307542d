"""The plugin author's guide: every block of code in rewards/README.md runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry
from mentor_rewards.registry import BUILT_IN
from mentor_rewards.testing import sample_batch

GUIDE = (Path(__file__).parents[2] / "rewards" / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture
def author(tmp_path: Path) -> Path:
    """A folder as the author has it after following the guide, and some pictures."""
    plugin, test, _ = blocks("python")
    (tmp_path / "sharpness.py").write_text(plugin)
    (tmp_path / "test_sharpness.py").write_text(test)
    (tmp_path / "pictures").mkdir()
    for n, image in enumerate(sample_batch(count=2).images):
        image.save(tmp_path / "pictures" / f"{n}.png")
    return tmp_path


def run(command: str, folder: Path) -> str:
    words = [sys.executable, *command.split()[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_commands(author: Path) -> None:
    check, score = (block.strip() for block in blocks("bash"))
    assert "FAIL" not in run(check, author)
    rows = [json.loads(line) for line in run(score, author).splitlines()]
    assert [row["file"] for row in rows] == ["0.png", "1.png"]
    assert set(rows[0]["scores"]) == {"Sharpness", "jpeg_size"}
    run("python -m pytest -q -p no:cacheprovider test_sharpness.py", author)


def test_recipe(author: Path) -> None:
    entries = {
        name: RewardEntry(**(entry or {})) for name, entry in yaml.safe_load(blocks("yaml")[0])["rewards"].items()
    }
    with Composite(entries, base=author) as composite:
        found = composite.score(sample_batch())
    assert composite.trained == ("sharpness", "colour_match")
    assert found.matrix().shape == (6, 2)
    assert found.scaled("sharpness").max() <= 1.0


def test_python_block(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[2], "README.md", "exec"), {})
    assert "[1.0," not in capsys.readouterr().out.splitlines()[1]


def test_the_plugin_is_short_and_the_table_complete() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 15
    assert re.findall(r"^\| `(\w+)` \|", GUIDE.split("## What ships")[1], flags=re.MULTILINE) == list(BUILT_IN)
