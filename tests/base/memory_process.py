"""How far work in a new process raises its peak of memory (read from Linux's /proc).

A child's ``getrusage`` starts at its parent's peak, so it would tell about the test process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT = 1.3  # x the size of the file that is read
START = """
import ast
import sys
from pathlib import Path
from mentor_base import model, processor
from mentor_base.checkpoint import load_policy
from mentor_base.config import SIZES
from mentor_base.interchange.options import ImportOptions
from mentor_base.interchange.importing import import_checkpoint

def resident(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

def touch(model):
    for parameter in model.parameters():
        parameter.detach().view(-1)[::512].sum()  # every page

folder, before = Path(sys.argv[1]), resident("VmRSS")
"""
END = "\nprint(resident('VmHWM') - before)"


def grown(folder: Path, work: str, *arguments: str) -> int:
    """Bytes by which the peak of a new process lies above what its imports take.

    ``work`` is Python; it knows ``folder``, and ``arguments`` as sys.argv[2:].
    """
    command = [sys.executable, "-c", START + work + END, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])
