"""One self-contained HTML file about any number of runs, benchmark results and ablations.

Everything that comes from a run is escaped, pictures are embedded, nothing is loaded from outside; the page's own
policy (Content-Security-Policy) forbids everything else, scripts but this package's own included.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from mentor_base.errors import UserError
from mentor_base.runlog import MARKER, RunFolder, write_atomically
from mentor_rl.evaluate.result import Result, result_file
from mentor_rl.report.ablation import ablation_section
from mentor_rl.report.benchmarks import results_section
from mentor_rl.report.comparison import comparison_section
from mentor_rl.report.markup import labels
from mentor_rl.report.run import run_section


@dataclass(frozen=True)
class Source:
    """What a section is about.

    Attributes:
        label: its heading; the shortest end of the path that no other has.
        anchor: where links lead.
        result: the benchmark result that was named by itself; None for a run or an ablation.
    """

    path: Path
    label: str
    anchor: str
    ablation: bool = False
    result: Result | None = None


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Write the report of run folders, ablations, exported checkpoints or result files to ``out``.

    ``out`` is an .html file, or a folder that gets report.html.

    Raises:
        UserError: a path that is none of these, or the same one twice; ``out`` is a file of another kind.
    """
    sources = _sources(paths)
    if out.suffix != ".html" and out.is_file():
        raise UserError(f"{out}: expected an .html file or a folder to write to, found another file")
    target = out if out.suffix == ".html" else out / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    runs = {each.label: (each.path, each.anchor) for each in sources if not each.ablation and each.result is None}
    extra = {each.label: each.result for each in sources if each.result is not None}
    together = comparison_section(runs, extra) if len(runs) + len(extra) > 1 else ""
    body = together + "".join(map(_section, sources))
    write_atomically(target, _page(body, sources, bool(together)))
    return target


def _sources(paths: Sequence[Path]) -> list[Source]:
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UserError(f"{path}: this is given twice")
        seen.add(path.resolve())
    return [
        _source(path, label, f"s{number}")
        for number, (path, label) in enumerate(zip(paths, labels(paths), strict=True))
    ]


def _source(path: Path, label: str, anchor: str) -> Source:
    if (path / MARKER).exists():
        kind = RunFolder(path).recipe().get("kind")
        outcome = path / "results" / "ablation.json"
        if kind == "ablate" and not outcome.exists():
            raise UserError(f"{path}: this ablation has no result yet; `mentor ablate RECIPE --collect` makes one")
        return Source(path, label, anchor, ablation=kind == "ablate")
    if path.is_file() and path.suffix == ".json":
        return Source(path, label, anchor, result=Result.read(path))
    if (path / "results").is_dir():
        return Source(path, label, anchor, result=Result.read(result_file(path)))
    raise UserError(f"{path}: expected a run folder (with {MARKER}), an ablation or a result (.json), found none")


def _section(source: Source) -> str:
    if source.ablation:
        return ablation_section(source.path, source.label, source.anchor)
    if source.result is None:
        return run_section(source.path, source.label, source.anchor)
    body = results_section({result_file(source.path): source.result})
    return f"<section id='{source.anchor}'><h1>{escape(source.label)} <small>result</small></h1>{body}</section>"


def _page(body: str, sources: Sequence[Source], together: bool) -> str:
    script = _file("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = [("together", "Side by side")] if together else []
    links += [(source.anchor, source.label) for source in sources] if len(sources) > 1 else []
    return _PAGE.format(
        title=escape(", ".join(source.label for source in sources)),
        policy=policy,
        style=_file("report.css"),
        links="".join(f"<a href='#{anchor}'>{escape(label)}</a>" for anchor, label in links),
        search=_SEARCH if "class='card'" in body else "",
        body=body,
        script=script,
    )


def _file(name: str) -> str:
    return resources.files("mentor_rl.report").joinpath(name).read_text(encoding="utf-8")


_SEARCH = """<label>Prompts <input id="search" type="search" placeholder="filter, key /" autocomplete="off"></label>
<output id="count" aria-live="polite"></output>"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title} · mentor-rl</title><style>{style}</style></head>
<body><header><nav>{links}</nav>{search}</header><main>{body}</main><script>{script}</script></body></html>
"""
