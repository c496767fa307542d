"""ADE20K-150: mIoU of cut-outs that a policy draws, label by label (MENTOR, arXiv 2507.09574, table 8).

The policy is asked for one label at a time, "The {label} in <image>.", and draws the object on black. The paper says
neither which labels are asked for, nor how a drawing becomes a mask, nor who wins a pixel that two drawings claim.
Decided here, as three protocols that are never mixed:

    A   labels of the ground truth, each on its own: intersection over union of its pixels, summed over pictures
    B   the same drawings merged into one map; the headline, and optimistic beside segmenters that are told no labels
    C   all 150 labels of every picture, merged: the comparable one, 300,000 drawings for the whole validation split

    mask      max(R, G, B) > ``tau``; dark objects are lost, so a ceiling stands beside every number: the true cut-outs
              through the VQ tokenizer, scored the same way. ``best_tau`` tunes tau, on training pictures
    merging   at the drawings' side: a pixel goes to the claimant whose drawing is nearest to the picture there (mean
              over 5 x 5 pixels and three channels of the absolute difference), on a tie to the smaller mask
    nobody    an unclaimed pixel counts as the prediction "none": missed by its class, false for no other
    size      pictures enter as squares (Lanczos, stretched), masks return to the annotation's size by nearest pixel
    classes   by the first synonym of objectInfo150.txt; classes that the ground truth never shows are left out of the
              mean; pixels annotated 0 ("other") count nowhere

Layout (ADEChallengeData2016.zip of sceneparsing.csail.mit.edu; objectInfo150.txt comes with it):

    ADEChallengeData2016/images/validation/ADE_val_00000001.jpg
    ADEChallengeData2016/annotations/validation/ADE_val_00000001.png      0 other, 1 to 150 the class
    ADEChallengeData2016/objectInfo150.txt

Shapes: H rows, W columns, K classes (1 to K; 0 is "other"), M labels asked for, S side of a drawing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mentor_base.errors import UserError
from mentor_base.images import over_white

CLASSES = 150
TAU = 24  # of 255
TAUS = tuple(range(4, 132, 4))  # to tune among
PROMPT = "The {label} in <image>."
NAMES_FILE = "objectInfo150.txt"
LAYOUT = (
    "expected the layout of ADEChallengeData2016.zip (sceneparsing.csail.mit.edu): "
    "images/{split}/ADE_*.jpg, annotations/{split}/ADE_*.png, " + NAMES_FILE
)
_LINE = re.compile(r"(?P<number>\d+)\s+[\d.]+\s+\d+\s+\d+\s+(?P<names>\D.*)")
_WINDOW = 5


@dataclass(frozen=True)
class Scene:
    """One annotated picture."""

    name: str
    image: Path
    annotation: Path


def read_scenes(root: str | Path, split: str = "validation") -> list[Scene]:
    """All annotated pictures of a split, by name.

    Raises:
        UserError: another layout, or pictures and annotations that do not belong together, listed.
    """
    folder, layout = Path(root), LAYOUT.format(split=split)
    kinds = {"images": ".jpg", "annotations": ".png"}
    found: dict[str, dict[str, Path]] = {}
    for kind, suffix in kinds.items():
        place = folder / kind / split
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; {layout}")
        found[kind] = {file.stem: file for file in place.glob(f"ADE_*{suffix}")}
    images, annotations = found["images"], found["annotations"]
    lonely = sorted(images.keys() ^ annotations.keys())
    if lonely:
        raise UserError(f"{folder}: picture or annotation is missing for {_few(lonely)}; {layout}")
    if not images:
        raise UserError(f"{folder / 'images' / split}: expected pictures named ADE_*.jpg, found none; {layout}")
    return [Scene(name, images[name], annotations[name]) for name in sorted(images)]


def read_names(root: str | Path) -> list[str]:
    """The first synonym of each of the 150 classes; class k stands at k - 1.

    Raises:
        UserError: no objectInfo150.txt, or other classes in it.
    """
    file = Path(root) / NAMES_FILE
    if not file.is_file():
        raise UserError(f"{file}: no such file; {LAYOUT.format(split='validation')}")
    lines = [_LINE.match(line.strip()) for line in file.read_text(encoding="utf-8").splitlines()]
    names = {int(line["number"]): line["names"].split(",")[0].strip() for line in lines if line}
    if sorted(names) != list(range(1, CLASSES + 1)):
        raise UserError(f"{file}: expected the classes 1 to {CLASSES}, one a line, found {len(names)} of them")
    return [names[number] for number in range(1, CLASSES + 1)]


def read_annotation(path: Path, classes: int = CLASSES) -> np.ndarray:
    """labels_HW, 0 to ``classes``.

    Raises:
        UserError: not a picture, more than one channel, or a label beyond the last class.
    """
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise UserError(f"{path}: cannot read this annotation: {error}") from error
    if labels.ndim != 2 or labels.max(initial=0) > classes:
        raise UserError(
            f"{path}: expected one channel of labels 0 to {classes}, found shape {labels.shape}, "
            f"largest value {labels.max(initial=0)}"
        )
    return labels.astype(np.int64)


def present(labels_HW: np.ndarray) -> list[int]:
    """The classes that an annotation shows, "other" left out."""
    return [int(label) for label in np.unique(labels_HW) if label]


def square(image: Image.Image, side: int) -> Image.Image:
    """The picture as the policy gets it: stretched to a square (Lanczos)."""
    return over_white(image).resize((side, side), Image.Resampling.LANCZOS)


def composite(picture: Image.Image, mask_HW: np.ndarray) -> Image.Image:
    """The true cut-out: the square picture where the mask is, black elsewhere. The mask is stretched (nearest)."""
    inside = nearest_resize(mask_HW, (picture.height, picture.width))
    return Image.fromarray(np.asarray(picture) * inside[..., None].astype(np.uint8))


def foreground(drawing: Image.Image, tau: int = TAU) -> np.ndarray:
    """mask_SS of what a drawing shows on black."""
    return np.asarray(over_white(drawing)).max(-1) > tau


def nearest_resize(values_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """To (rows, columns): the value at the middle of each new pixel."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, values_HW.shape, strict=True)
    )
    return values_HW[rows[:, None], columns[None, :]]


def merged(picture: Image.Image, drawings: Sequence[Image.Image], labels: Sequence[int], tau: int = TAU) -> np.ndarray:
    """One map of the drawings' labels, 0 where nobody claims a pixel -> map_SS.

    Args:
        picture: the square that the policy was given, of the drawings' size.
        labels: of each drawing.
    """
    out = np.zeros((picture.height, picture.width), dtype=np.int64)
    best_error, best_area = (np.full(out.shape, np.iinfo(np.int64).max) for _ in range(2))
    truth = np.asarray(over_white(picture), dtype=np.int64)
    for drawing, label in zip(drawings, labels, strict=True):
        mask = foreground(drawing, tau)
        difference = np.abs(np.asarray(over_white(drawing), dtype=np.int64) - truth).sum(-1)
        error, area = box_sum(difference), int(mask.sum())  # whole numbers: equal windows tie
        better = (error < best_error) | ((error == best_error) & (area < best_area))
        won = mask & better
        out[won], best_error[won], best_area[won] = label, error[won], area
    return out


def box_sum(values_HW: np.ndarray, window: int = _WINDOW) -> np.ndarray:
    """Sum over a window around each pixel; beyond the border the nearest pixel is repeated."""
    padded = np.pad(values_HW, window // 2, mode="edge")
    rows = np.lib.stride_tricks.sliding_window_view(padded, window, axis=0).sum(-1)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(rows, window, axis=1).sum(-1))


def confusion(truth_HW: np.ndarray, map_HW: np.ndarray, classes: int = CLASSES) -> np.ndarray:
    """Pixels by true class (1 to K) and predicted class (0 "none" to K); "other" pixels of the truth are left out.

    Returns:
        counts [K, K + 1], int64.
    """
    known = truth_HW > 0
    pairs = (truth_HW[known] - 1) * (classes + 1) + map_HW[known]
    return np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def tally(confusion_KK1: np.ndarray) -> np.ndarray:
    """Pixels of intersection, of union and of the truth, per class -> [K, 3]."""
    right = np.diagonal(confusion_KK1[:, 1:])
    true, claimed = confusion_KK1.sum(1), confusion_KK1[:, 1:].sum(0)
    return np.stack([right, true + claimed - right, true], axis=1)


def overlap(truth_HW: np.ndarray, mask_HW: np.ndarray, label: int) -> tuple[int, int, int]:
    """Protocol A: the same three numbers of one label's mask; "other" pixels are left out."""
    known, true = truth_HW > 0, truth_HW == label
    claimed = mask_HW & known
    return int((true & claimed).sum()), int((true | claimed).sum()), int(true.sum())


def class_ious(tally_K3: np.ndarray) -> np.ndarray:
    """Intersection over union per class, from sums (or means) over pictures [..., K, 3] -> [..., K]; NaN for classes
    that the truth never shows."""
    shared, union, true = np.moveaxis(tally_K3.astype(np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(true > 0, shared / union, np.nan)


def mean_iou(tally_K3: np.ndarray) -> np.ndarray:
    """Mean over the classes that the truth shows -> [...]; NaN where it shows none."""
    ious_K = class_ious(tally_K3)
    shown_K = ~np.isnan(ious_K)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(shown_K, ious_K, 0.0).sum(-1) / shown_K.sum(-1))


def best_tau(
    drawings: Sequence[Image.Image], masks: Sequence[np.ndarray], candidates: Sequence[int] = TAUS
) -> tuple[int, dict[int, float]]:
    """The threshold whose masks are nearest to the true ones (mean IoU over drawings), and all candidates' values.

    All pixels count here, "other" ones too: in a true cut-out they are black.

    For training pictures only: a threshold tuned on the validation split would flatter the policy. The smaller of two
    equally good ones wins.

    Args:
        masks: bool [H, W] of any size, one per drawing; not empty.
    """
    scores = {}
    for tau in candidates:
        ious = []
        for drawing, mask_HW in zip(drawings, masks, strict=True):
            mine = nearest_resize(foreground(drawing, tau), (mask_HW.shape[0], mask_HW.shape[1]))
            ious.append((mine & mask_HW).sum() / (mine | mask_HW).sum())
        scores[tau] = float(np.mean(ious))
    return max(sorted(scores), key=lambda tau: scores[tau]), scores


def _few(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"
