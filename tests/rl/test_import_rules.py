"""Dependencies point one way, and the command line answers without loading torch."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "mentor_base": ROOT / "mentor_base",
    "mentor_rl": ROOT / "mentor_rl",
    "mentor_rewards": ROOT / "rewards" / "mentor_rewards",
}
FORBIDDEN = {
    "mentor_base": {"mentor_rl", "mentor_rewards", "trl"},
    "mentor_rewards": {"mentor_rl", "mentor_base", "trl"},
    "mentor_rl": {"rewards"},
}
HEAVY = {"torch", "transformers", "trl", "numpy", "datasets", "accelerate"}
LIGHT_MODULES = (
    "mentor_rl.cli",
    "mentor_rl.recipe",
    "mentor_rl.recipe_files",
    "mentor_base.settings",
    "mentor_base.runlog",
    "mentor_rewards.contract",
)


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.lineno, node.module or ""


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_point_one_way(package: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {module}"
        for file in sorted(PACKAGES[package].rglob("*.py"))
        for line, module in _imports(ast.parse(file.read_text(encoding="utf-8")))
        if module.split(".")[0] in FORBIDDEN[package]
    ]
    assert not found


def test_trl_stays_behind_its_seams() -> None:
    knowing = {
        file.name
        for file in PACKAGES["mentor_rl"].rglob("*.py")
        for _, module in _imports(ast.parse(file.read_text(encoding="utf-8")))
        if module.split(".")[0] == "trl"
    }
    assert knowing <= {"trainer.py", "trl_arguments.py"}


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded


def test_help_answers_at_once() -> None:
    """The target is half a second on an idle machine. CPU time, since others may hold the machine for seconds."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "mentor_rl", "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert "train" in done.stdout
    assert min(seconds) < 1.2
