"""The model card of an export: what it is, how it was made, what it scores, what it looks like, under which licence.

README.md        the card
recipe.yaml      the resolved recipe; manifest.json: versions, hardware, seeds
curves/*.svg     the run's metrics
pictures/*.png   before and after on fixed prompts; the trainer's last sample grids
results/*.json   benchmarks taken in this run
LICENSE, DATA_LICENSES.md
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.runlog import MANIFEST, MARKER, RunFolder
from mentor_rl import gallery
from mentor_rl.evaluate.result import Result
from mentor_rl.monitors.sentences import fixed_prompts
from mentor_rl.report.curves import read_metrics, run_charts

WHAT = {
    "tokenizer": "A VQ picture tokenizer of the VQ-16 design.",
    "sft": "A MENTOR policy after supervised training: text and reference pictures in, picture tokens out.",
    "grpo": "A MENTOR policy tuned by GRPO under a composite of rewards, against a frozen reference.",
    "scorer": "A small scorer of pictures.",
}
USE = """
```python
from PIL import Image

from mentor_base.data.schema import Prompt
from mentor_base.generate import draw
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.processor import MentorProcessor

model = MentorForConditionalGeneration.from_pretrained("{name}").eval()
processor = MentorProcessor.from_pretrained("{name}")
prompt = Prompt("<image> this fox in line art style", (Image.open("fox.png"),))
draw(model, processor, [prompt]).images[0].save("out.png")
```

or `mentor sample {name} --text "..." --image ref.png --out out.png`.
"""
BEFORE_AFTER_ROWS = 12


def write_card(run: RunFolder, folder: Path, dtype: str, best: Mapping[str, Any] | None = None) -> None:
    """Write README.md and the files that it shows into an export's folder.

    ``best`` (see monitors/best.py): the policy is that of this step, and so are its pictures and metrics.
    """
    recipe, until = run.recipe(), math.inf if best is None else best["step"]
    shutil.copyfile(run.path / MARKER, folder / MARKER)
    shutil.copyfile(run.path / MANIFEST, folder / MANIFEST)
    _copy_licences(folder)
    sections = [
        _front_matter(recipe),
        f"# {run.path.name}\n",
        _purpose(recipe),
        USE.format(name=folder_name(folder)) if recipe["kind"] in ("sft", "grpo") else "",
        _facts(run, dtype, best),
        _last_metrics(run, until),
        _benchmarks(run, folder),
        _before_after(run, folder, until),
        _curves(run, folder),
        _grids(run, folder, until),
        "## Recipe\n\n```yaml\n" + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) + "```\n",
        _licence(recipe),
    ]
    (folder / "README.md").write_text("\n".join(part for part in sections if part), encoding="utf-8")


def folder_name(folder: Path) -> str:
    """The name under which the export will stand: its folder is temporary while it is written (.NAME.PID)."""
    match = re.fullmatch(r"\.(.+)\.\d+", folder.name)
    return match.group(1) if match else folder.name


def _front_matter(recipe: Mapping[str, Any]) -> str:
    facts: dict[str, Any] = {"license": "apache-2.0", "library_name": "mentor-rl", "tags": ["mentor", recipe["kind"]]}
    if recipe["kind"] in ("sft", "grpo"):
        facts["pipeline_tag"] = "image-to-image"
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n"


def _purpose(recipe: Mapping[str, Any]) -> str:
    start = recipe.get("policy") or recipe.get("init")
    lines = [WHAT[recipe["kind"]], str(recipe.get("about") or "")]
    if start:
        lines.append(f"It started from `{start}`.")
    return "\n\n".join(line for line in lines if line) + "\n"


def _facts(run: RunFolder, dtype: str, best: Mapping[str, Any] | None) -> str:
    manifest = run.manifest()
    steps = max((line["step"] for line in run.metrics()), default=0)
    rows = {
        "seed": run.recipe().get("seed"),
        "optimizer steps": steps if best is None else _best_step(best),
        "minutes": round(run.logged_seconds() / 60, 1),
        "weights": f"{dtype}, safetensors",
        "python": manifest.get("python"),
        **manifest.get("versions", {}),
        "machine": f"{manifest.get('machine')}, {manifest.get('cores')} cores",
        "started": manifest.get("started"),
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items() if value is not None)
    return f"## How it was made\n\n| | |\n|---|---|\n{table}"


def _best_step(best: Mapping[str, Any]) -> str:
    return (
        f"{best['step']}, with the best {best['metric']} ({best['value']:.4g}, {best['mode']}) of {best['of']} "
        "evaluations on the fixed prompts: too good by their noise"
    )


def _last_metrics(run: RunFolder, until: float) -> str:
    """First and last value of every metric that was logged at least twice up to this step."""
    logged = {key: [point for point in points if point[0] <= until] for key, points in read_metrics(run).items()}
    moved = {key: points for key, points in logged.items() if len(points) > 1}
    if not moved:
        return ""
    rows = "".join(f"| {key} | {points[0][1]:.4g} | {points[-1][1]:.4g} |\n" for key, points in sorted(moved.items()))
    return f"<details><summary>Metrics</summary>\n\n| metric | first | last |\n|---|---|---|\n{rows}\n</details>\n"


def _benchmarks(run: RunFolder, folder: Path) -> str:
    files = sorted((run.path / "results").glob("*.json"))
    if not files:
        return ""
    (folder / "results").mkdir()
    parts = ["## Results\n"]
    for file in files:
        shutil.copyfile(file, folder / "results" / file.name)
        parts.append(Result.read(file).markdown())
    return "\n".join(parts)


def _before_after(run: RunFolder, folder: Path, until: float) -> str:
    """One sheet of the fixed prompts: references, the first recorded pictures, the last ones up to this step."""
    shown = gallery.read(run.path)
    steps = [step for step in shown.steps if step <= until] if shown is not None else []
    if shown is None or len(steps) < 2:
        return ""
    from mentor_base.images import contact_sheet

    first, last = steps[0], steps[-1]
    rows, captions = [], []
    for i, prompt in enumerate(shown.prompts[:BEFORE_AFTER_ROWS]):
        pictures = [shown.pictures[first][i], shown.pictures[last][i]]
        side = Image.open(pictures[0]).width
        references = [Image.open(file).convert("RGB").resize((side, side)) for file in prompt.references]
        rows.append([*references, *(Image.open(file).convert("RGB") for file in pictures)])
        captions.append(prompt.text)
    (folder / "pictures").mkdir(exist_ok=True)
    contact_sheet(rows, captions).save(folder / "pictures" / "before_after.png")
    return (
        f"## Before and after\n\n{fixed_prompts(run.recipe())}: references, step {first}, step {last}.\n\n"
        "![before and after](pictures/before_after.png)\n"
    )


def _curves(run: RunFolder, folder: Path) -> str:
    """Of the whole run."""
    charts = run_charts(read_metrics(run))
    links = []
    for title, chart in charts.items():
        name = re.sub(r"\W+", "_", title.lower())
        (folder / "curves").mkdir(exist_ok=True)
        (folder / "curves" / f"{name}.svg").write_text(chart, encoding="utf-8")
        links.append(f"![{title}](curves/{name}.svg)")
    return "## Curves\n\n" + "\n".join(links) + "\n" if links else ""


def _grids(run: RunFolder, folder: Path, until: float) -> str:
    """The trainer's newest sample grid of each name up to this step."""
    newest = {}
    for file in sorted((run.path / "samples").glob("step_*.png")):
        _, step, name = file.stem.split("_", 2)
        if int(step) <= until:
            newest[name] = file
    if not newest:
        return ""
    (folder / "pictures").mkdir(exist_ok=True)
    links = []
    for name, file in newest.items():
        shutil.copyfile(file, folder / "pictures" / file.name)
        links.append(f"![{name}](pictures/{file.name})")
    return "## Samples\n\n" + "\n".join(links) + "\n"


def _licence(recipe: Mapping[str, Any]) -> str:
    lines = ["## Licence\n", "Weights and code: Apache-2.0 (LICENSE)."]
    if set(_sources(recipe)) - {"emoji"}:
        lines.append("Trained on data of the recipe's author, whose terms may restrict the use of these weights.")
    lines.append(
        "The drawings of the embedded emoji world, on which this model or what it started from was trained, are free "
        "works of several authors (Apache-2.0, MIT, CC-BY-4.0): DATA_LICENSES.md has their licences and credits, and "
        "goes along with every copy."
    )
    return "\n".join(lines) + "\n"


def _sources(section: Any) -> list[str]:
    """Every ``source`` of data in the recipe."""
    if not isinstance(section, Mapping):
        return []
    own = [str(section["source"])] if "source" in section else []
    return own + [found for value in section.values() for found in _sources(value)]


def _copy_licences(folder: Path) -> None:
    for name in ("LICENSE", "DATA_LICENSES.md"):
        (folder / name).write_text(_licence_text(name), encoding="utf-8")


def _licence_text(name: str) -> str:
    """From the installed package's metadata, or from the clone that this file stands in."""
    in_clone = Path(__file__).resolve().parent.parent / name
    if in_clone.exists():
        return in_clone.read_text(encoding="utf-8")
    installed = metadata.distribution("mentor-rl").read_text(f"licenses/{name}")
    if installed is None:
        raise UserError(f"{name}: expected with the package mentor-rl, found neither there nor in {in_clone.parent}")
    return installed
