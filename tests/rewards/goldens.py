"""The scripts of tools/golden as modules: inputs and expected numbers of upstream's packages."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "tools" / "golden"


def golden(name: str) -> ModuleType:
    """tools/golden/<name>.py; importing it needs no upstream package."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # at the end: a script must not hide a package of its name
    return importlib.import_module(name)
