"""The plugin author's guide: every block of rewards/README.md runs, and its tables are complete."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry
from mentor_rewards.registry import BUILT_IN
from mentor_rewards.testing import RULES, sample_batch

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "rewards" / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


PLUGIN, TEST, ADAPTERS, FROM_PYTHON = blocks("python")
FIRST, COMMANDS, PACKAGE = blocks("bash")
SCORED, TASKS, SERVED = (yaml.safe_load(block)["rewards"] for block in blocks("yaml"))


@pytest.fixture
def author(tmp_path: Path) -> Path:
    """A folder as the author has it after following the guide, in a clone, and some pictures."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "sharpness.py").write_text(PLUGIN)
    (tmp_path / "test_sharpness.py").write_text(TEST)
    (tmp_path / "pictures").mkdir()
    for n, image in enumerate(sample_batch(count=2).images):
        image.save(tmp_path / "pictures" / f"{n}.png")
    return tmp_path


def run(command: str, folder: Path) -> str:
    words = shlex.split(command)
    module = {"mentor": ["-m", "mentor_rl"], "python": []}[words[0]]
    path = os.pathsep.join(map(str, (folder / "contrast" / "src", ROOT, ROOT / "rewards")))
    done = subprocess.run(
        [sys.executable, *module, *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def commands(block: str) -> list[str]:
    return block.replace("\\\n", " ").strip().splitlines()


def entries(section: dict) -> dict[str, RewardEntry]:
    return {name: RewardEntry.model_validate(entry or {}) for name, entry in section.items()}


def test_from_nothing_to_a_grpo_run_in_less_than_twenty_lines(author: Path) -> None:
    lines = [line for line in f"{PLUGIN}{FIRST}".splitlines() if line.strip()]
    assert len(lines) < 20
    check, train = commands(FIRST)
    assert "BROKEN" not in run(check, author)
    run(train, author)
    metrics = next((author / "runs" / "sharp").glob("metrics*")).read_text().splitlines()
    assert len([line for line in metrics if "rewards/sharpness/mean" in line]) == 3


def test_commands(author: Path) -> None:
    outputs = [run(command, author) for command in commands(COMMANDS)]
    assert set(BUILT_IN) <= {line.split()[0] for line in outputs[0].splitlines()}
    assert "metadata.background" in outputs[1]
    assert outputs[2].count("holds") == 2
    assert (author / "scores.csv").read_text().startswith("row,file,prompt,Sharpness,Sharpness.reason,jpeg_size,")


def test_package(author: Path) -> None:
    new, test = commands(PACKAGE)
    run(new, author)
    assert "19 passed" in run(f"{test} -p no:cacheprovider", author)
    written = tomllib.loads((author / "contrast" / "pyproject.toml").read_text())["project"]["entry-points"]
    assert written == tomllib.loads(blocks("toml")[0])["project"]["entry-points"]


def test_own_suite(author: Path) -> None:
    shown = run("python -m pytest -q -p no:cacheprovider -p mentor_rewards.testing_plugin test_sharpness.py", author)
    assert f"{len(RULES)} passed" in shown


def test_recipes(author: Path) -> None:
    with Composite(entries(SCORED), base=author) as composite:
        found = composite.score(sample_batch())
    assert composite.trained == ("sharpness", "colour_match")
    assert found.matrix().shape == (6, 2)
    assert found.scaled("sharpness").max() <= 1.0
    for section in (TASKS, SERVED):
        assert Composite(entries(section)).trained == tuple(section)


def test_python_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(FROM_PYTHON, "README.md", "exec"), {})
    assert "[1.0," not in capsys.readouterr().out.splitlines()[1]
    exec(compile(ADAPTERS, "README.md", "exec"), {})
    assert "['ground', 'small']" in capsys.readouterr().out


def table(heading: str) -> set[str]:
    """The names in the first column below a heading."""
    section = GUIDE.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \|", section, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w.-]+)`", cell)}


def test_the_tables_are_complete() -> None:
    assert table("What ships") == set(BUILT_IN)
    assert {rule.name for rule in RULES} <= table("The contract")
    assert table("In a recipe") == set(RewardEntry.model_fields)
