"""``mentor rewards new NAME``: a package with a working reward, from the files in ``plugin_template``.

In names and texts of the template, ``$name`` is the reward's, ``$module`` the import package's, ``$class_name`` the
class's.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template

from mentor_rewards.contract import RewardError
from mentor_rewards.registry import listed

TEMPLATE = Path(__file__).parent / "plugin_template"
SUFFIX = ".tmpl"  # so that no tool takes a template for a source file


def write_plugin(name: str, out: Path | None = None) -> Path:
    """Write the package and return its folder.

    Args:
        name: snake_case; the name that recipes will use.
        out: the folder to make; default: ``name`` in the current folder.

    Raises:
        RewardError: a name that is none or is taken, or a folder that is not empty.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*[a-z0-9]", name) or keyword.iskeyword(name):
        raise RewardError(f"new: expected a snake_case name such as 'colour_contrast', found '{name}'")
    for found in listed():
        if found.name == name:
            raise RewardError(f"new: the name '{name}' is taken by {found.target} ({found.package})")
    folder = out or Path(name)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise RewardError(f"new: {folder}: expected a new or empty folder, found files in it")
    words = {
        "name": name,
        "module": f"{name}_reward",
        "class_name": "".join(part.capitalize() for part in name.split("_")),
        "package": f"{name.replace('_', '-')}-reward",
        "needs": _requirement(),
    }
    for file in _files(TEMPLATE):
        target = folder / Template(str(file.relative_to(TEMPLATE)).removesuffix(SUFFIX)).substitute(words)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(file.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
    return folder


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob(f"*{SUFFIX}")) if path.is_file())


def _requirement() -> str:
    """What the new package depends on: the distribution that brings mentor_rewards, from its present version."""
    try:
        return f"mentor-rl>={version('mentor-rl')}"
    except PackageNotFoundError:  # run from a clone that is not installed
        return "mentor-rl"
