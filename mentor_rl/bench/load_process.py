"""The child of ``mentor bench load``: does one thing and prints its seconds and its peak of memory as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mentor_base.checkpoint import load_policy
from mentor_base.interchange.importing import import_checkpoint
from mentor_base.interchange.options import ImportOptions
from mentor_rl.bench.machine import resident

STRIDE = 512  # numbers; less than a page of float16


def import_random(folder: Path, source: Path) -> None:
    options = ImportOptions(image_size=256, vq=folder / "vq", text_encoder=folder / "t5", vision=folder / "clip")
    import_checkpoint(source, "llamagen", folder / "imported", options)


def load(folder: Path) -> None:
    """Load a policy and touch every page of its weights: mapped ones are read when they are used."""
    model, _ = load_policy(folder)
    for parameter in model.parameters():
        parameter.detach().view(-1)[::STRIDE].sum()


def main(work: str, folder: Path, source: Path) -> None:
    before, began = resident("VmRSS"), time.perf_counter()
    if work == "import":
        import_random(folder, source)
    else:
        load(folder)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_bytes": resident("VmHWM") - before}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
