"""``new``: a package that installs, is listed, keeps the contract, and passes its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mentor_rewards.contract import RewardError
from mentor_rewards.new_plugin import write_plugin

PACKAGES = Path(__file__).parents[2] / "rewards"


def python(*words: Any, site: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(PACKAGES)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_from_new_to_installed_checked_and_tested(tmp_path: Path) -> None:
    site = tmp_path / "site"

    def run(*words: Any) -> str:
        done = python(*words, site=site, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("mentor_rewards", "new", "edge_2").splitlines()[0] == "edge_2"
    run("pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", site, "./edge_2")
    assert "edge_2_reward:Edge2" in next(
        line for line in run("mentor_rewards", "list").splitlines() if "edge_2" in line
    )
    assert "BROKEN" not in run("mentor_rewards", "check", "edge_2", "-o", "border=0.1")
    assert "19 passed" in run("pytest", "-q", "-p", "no:cacheprovider", "--strict-markers", "edge_2")
    again = python("mentor_rewards", "new", "edge_2", site=site, folder=tmp_path)
    assert again.returncode == 2
    assert again.stderr == "error: new: the name 'edge_2' is taken by edge_2_reward:Edge2 (edge-2-reward 0.1.0)\n"


@pytest.mark.parametrize("name", ["Edge", "edge-2", "2edge", "class", "", "../edge", "kanté", "_", "edge;x"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="new: expected a snake_case name"):
        write_plugin(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_taken_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"'style' is taken by mentor_rewards.style:Style \(mentor_rewards\)"):
        write_plugin("style", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(RewardError, match="expected a new or empty folder, found files in it"):
        write_plugin("edge", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
