"""GenEval: does the picture show the objects, counts, colours and places that the prompt names (arXiv 2310.11513).

Here stand the prompts and the rules over detections, as pure functions; geneval_detector.py finds the objects,
geneval_colours.py names their colours, geneval_bench.py runs it all.

Rules, from the published evaluator (github.com/djghosh13/geneval):
    detections   score above .3, in counting above .9; the 16 best of each class; overlapping boxes are kept
    include      the ``count`` best of the class must exist; where a colour is named, each of them must have it; where a
                 place is named, each must stand there relative to each of the earlier clause's objects
    exclude      fewer than ``count`` of the class may exist (counting: one more than asked for)
    place        offset of the box centres, each axis shrunk by .1 x (sum of both sizes along it), over the length of
                 the unshrunk offset; beyond .5 along an axis the relation holds, so none may hold, or two
    overall      the unweighted mean of the six tags' shares of right pictures; the pictures are the units, four a
                 prompt (553 prompts)

Deviation: a place clause that points at itself or a later clause is refused when the prompts are read.

Numbers are labelled GenEval-HF: the detector's weights are not those of the published one; see geneval_detector.py.

Shapes: H rows, W columns of a picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mentor_base.errors import UserError, nearest

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
PER_CLASS = 16
PROMPTS_FILE = "evaluation_metadata.jsonl"
_SHRINK, _REACH = 0.1, 0.5
# COCO's 80 classes in COCO's order, by GenEval's names: it says "computer mouse" (COCO: mouse), "tv remote" (remote)
# and "computer keyboard" (keyboard). Detectors spell others differently too ("sofa"), so the index is what counts.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


@dataclass(frozen=True)
class Detection:
    """One object of a picture.

    Attributes:
        name: one of CLASSES.
        score: in [0, 1].
        box: left, top, right, bottom in pixels; right and bottom are exclusive.
        mask_HW: bool.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask_HW: np.ndarray

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of the box's middle."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the box."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]


@dataclass(frozen=True)
class Clause:
    """Objects that must be there (include), or must not be that many (exclude).

    Attributes:
        place: (relation, number of the include clause it is relative to), e.g. ("left of", 0).
    """

    name: str
    count: int
    colour: str | None = None
    place: tuple[str, int] | None = None


@dataclass(frozen=True)
class GenEvalPrompt:
    """One line of the prompts' file; ``number`` counts from 0."""

    number: int
    tag: str
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is right, and if not, why."""

    correct: bool
    reasons: tuple[str, ...] = ()


ColoursOf = Callable[[Sequence[Detection], str], Sequence[str]]
"""Objects of one picture and the name of their class -> a colour of COLOURS for each."""


def kept(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The detections that count for a tag, by class, best first."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda each: -each.score):
        of_class = found.setdefault(detection.name, [])
        if detection.score > threshold and len(of_class) < PER_CLASS:
            of_class.append(detection)
    return found


def judge(prompt: GenEvalPrompt, detections: Sequence[Detection], colours_of: ColoursOf) -> Verdict:
    """The verdict on one picture. ``colours_of`` is asked only about objects whose colour the prompt names."""
    found = kept(detections, prompt.tag)
    reasons: list[str] = []
    matched: list[list[Detection] | None] = []  # per clause the objects that others may be placed by
    for clause in prompt.include:
        objects = found.get(clause.name, [])[: clause.count]
        fault = _fault(clause, objects, matched, colours_of)
        matched.append(None if fault else objects)
        reasons += [fault] if fault else []
    for clause in prompt.exclude:
        number = len(found.get(clause.name, []))
        if number >= clause.count:
            reasons.append(f"{clause.name}: expected fewer than {clause.count}, found {number}")
    return Verdict(not reasons, tuple(reasons))


def _fault(
    clause: Clause,
    objects: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    colours_of: ColoursOf,
) -> str:
    if len(objects) < clause.count:
        return f"{clause.name}: expected {clause.count}, found {len(objects)}"
    if clause.colour is not None:
        colours = list(colours_of(objects, clause.name))
        if colours.count(clause.colour) < clause.count:
            return f"{clause.name}: expected {clause.colour}, found {' and '.join(colours)}"
    if clause.place is not None:
        relation, other = clause.place
        anchors = matched[other]
        if anchors is None:
            return f"{clause.name}: expected {relation} an object that is not right itself"
        for each in objects:
            for anchor in anchors:
                true = relations(each, anchor)
                if relation not in true:
                    return f"{clause.name}: expected {relation} {anchor.name}, found {' and '.join(true) or 'neither'}"
    return ""


def relations(one: Detection, other: Detection) -> tuple[str, ...]:
    """Which of RELATIONS hold from one object to the other: none, one or two."""
    offset = [a - b for a, b in zip(one.centre, other.centre, strict=True)]
    room = [_SHRINK * (a + b) for a, b in zip(one.size, other.size, strict=True)]
    shrunk = [math.copysign(max(abs(o) - r, 0.0), o) for o, r in zip(offset, room, strict=True)]
    length = math.hypot(*offset)
    if max(map(abs, shrunk)) < 1e-3:
        return ()
    x, y = (each / length for each in shrunk)
    holds = (x < -_REACH, x > _REACH, y < -_REACH, y > _REACH)
    return tuple(relation for relation, true in zip(RELATIONS, holds, strict=True) if true)


def overall(accuracies: Mapping[str, float]) -> float:
    """The unweighted mean of the six tags; NaN while one of them has no picture."""
    return float(np.mean([accuracies.get(tag, math.nan) for tag in TAGS]))


def read_prompts(path: str | Path) -> list[GenEvalPrompt]:
    """The prompts of ``evaluation_metadata.jsonl``.

    Raises:
        UserError: no such file, or a line that is none of GenEval's, by its number.
    """
    file = Path(path)
    file = file / PROMPTS_FILE if file.is_dir() else file
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file; expected GenEval's {PROMPTS_FILE} (553 lines, in the folder prompts of "
            "github.com/djghosh13/geneval)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot read GenEval's prompts: {error}") from error
    prompts = [_prompt(line, number, f"{file}:{number + 1}") for number, line in enumerate(lines) if line.strip()]
    if not prompts:
        raise UserError(f"{file}: expected GenEval's prompts, one JSON object a line, found an empty file")
    return prompts


def _prompt(line: str, number: int, where: str) -> GenEvalPrompt:
    try:
        facts = json.loads(line)
        tag, text = facts["tag"], str(facts["prompt"])
        include = tuple(_clause(each, place, where) for place, each in enumerate(facts["include"]))
        exclude = tuple(_clause(each, 0, where) for each in facts.get("exclude", ()))
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: expected a JSON object, found no valid JSON: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}: expected a GenEval prompt with tag, include and prompt, found {what}") from error
    _check(tag, "tag", TAGS, where)
    if not include:
        raise UserError(f"{where}: expected at least one object in include, found none")
    return GenEvalPrompt(number, tag, text, include, exclude)


def _clause(facts: Mapping[str, Any], place: int, where: str) -> Clause:
    _check(facts["class"], "class", CLASSES, where)
    colour, relation = facts.get("color"), facts.get("position")
    if colour is not None:
        _check(colour, "color", COLOURS, where)
    if relation is not None:
        _check(relation[0], "position", RELATIONS, where)
        if not 0 <= int(relation[1]) < place:
            raise UserError(f"{where}: position: expected the number of an earlier clause, found {relation[1]}")
        relation = (str(relation[0]), int(relation[1]))
    return Clause(facts["class"], int(facts["count"]), colour, relation)


def _check(value: str, what: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        raise UserError(f"{where}: unknown {what} '{value}'; {nearest(str(value), known)}")
