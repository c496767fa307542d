"""GenEval's object detector: transformers' Mask2Former (Swin-S, COCO instances) with mmdet's pre- and postprocessing.

GenEval uses mmdet's model. Here are FAIR's weights of the same architecture, trained apart from mmdet's: no published
figure says how often the two agree, so numbers are labelled GenEval-HF. transformers' own processing is left out on
purpose: it makes small squares of some pictures, squeezes the masks and returns no boxes.

    in    short side 800 unless the long one would pass 1333, bilinear without antialiasing, rounded to whole numbers as
          OpenCV leaves them, ImageNet's statistics, zeros at the right and the bottom up to a multiple of 32
    out   softmax less the no-object column; the 100 best (query, class) pairs; their mask logits at the padded size,
          cropped to the picture, then at its own size; mask = logit > 0, score = class probability x mean sigmoid
          inside the mask, box around the mask

float32 with TF32 off: one report has GenEval's detector fail on cards whose convolutions default to it.

Shapes: H rows, W columns of the picture; h, w after resizing; P, R after padding; Q queries, K classes, M chosen pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from mentor_rewards.contract import RewardError
from mentor_rewards.pretrained import load_model, model_folder, typed_weights
from mentor_rewards.weights import checksum
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import Mask2FormerModel, Mask2FormerPreTrainedModel

from mentor_base.errors import UserError
from mentor_base.images import over_white
from mentor_rl.evaluate.geneval import CLASSES, THRESHOLD, Detection
from mentor_rl.evaluate.recipes import MASK2FORMER

SHORT, LONG, MULTIPLE = 800, 1333, 32
PAIRS = 100
_PUBLISHED = (96, (2, 2, 18, 2), 100, SHORT, LONG)  # Swin-S with 100 queries: a wrong size can be seen, an origin not
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Detector(Protocol):
    """Finds objects. ``name`` goes into results; ``stand_in``: not the detector that the benchmark asks for."""

    name: str
    stand_in: bool

    def __call__(self, image: Image.Image) -> list[Detection]:
        """All objects with a score above THRESHOLD, best first."""


def find_detector(source: str | Path) -> list[Path]:
    """The detector's files of weights, there or fetched; its config says what it is.

    Raises:
        UserError: no such model, or another one.
    """
    try:
        return typed_weights(model_folder(source), "mask2former")
    except RewardError as error:
        raise UserError(f"detector: {error}") from error


class InstanceNetwork(Mask2FormerPreTrainedModel):
    """Mask2FormerForUniversalSegmentation less its loss, which would need scipy; reads the same checkpoints."""

    _keys_to_ignore_on_load_unexpected = ["criterion.empty_weight"]  # noqa: RUF012 - transformers makes it its own

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels_N3PR -> class logits [N, Q, K + 1] and mask logits [N, Q, P / 4, R / 4] of the last decoder layer."""
        out = self.model(pixel_values=pixel_values, output_hidden_states=True)
        states_NQD = out.transformer_decoder_intermediate_states[-1].transpose(0, 1)
        return self.class_predictor(states_NQD), out.masks_queries_logits[-1]


class Mask2FormerDetector:
    """The network on COCO's 80 classes, read from a folder or the hub.

    Args:
        source: folder or hub id.
        short, long: sides in pixels; others than the published ones make a stand-in.

    Raises:
        UserError: no such model, other tensors or other classes.
    """

    def __init__(
        self, source: str | Path = MASK2FORMER, device: str = "cpu", short: int = SHORT, long: int = LONG
    ) -> None:
        files = find_detector(source)
        try:
            self.model: Any = load_model(InstanceNetwork, files[0].parent, "float32").to(device)
            digest = checksum(files[0])[:12]
        except RewardError as error:
            raise UserError(f"detector: {error}") from error
        classes = self.model.config.num_labels
        if classes != len(CLASSES):
            raise UserError(f"detector: {source}: expected COCO's {len(CLASSES)} classes, found {classes}")
        self.short, self.long = short, long
        self.name = f"Mask2Former {source} {digest} at {short}/{long}"
        swin = self.model.config.backbone_config
        found = (swin.embed_dim, tuple(swin.depths), self.model.config.num_queries, short, long)
        self.stand_in = found != _PUBLISHED

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> list[Detection]:
        """All objects with a score above THRESHOLD, best first."""
        pixels, inner = prepared(image, self.short, self.long)
        with _exact_float32():
            class_logits_1QK1, mask_logits_1Qhw = self.model(pixels.to(self.model.device))
        return instances(
            class_logits_1QK1[0],
            mask_logits_1Qhw[0],
            padded=(pixels.shape[2], pixels.shape[3]),
            inner=inner,
            size=(image.height, image.width),
        )


def resized(height: int, width: int, short: int = SHORT, long: int = LONG) -> tuple[int, int]:
    """Rows and columns after resizing: one factor for both, rounded half up."""
    factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def prepared(image: Image.Image, short: int = SHORT, long: int = LONG) -> tuple[torch.Tensor, tuple[int, int]]:
    """pixels_13PR, and the (h, w) of it that is picture."""
    pixels_3HW = torch.from_numpy(np.array(over_white(image), dtype=np.float32)).permute(2, 0, 1)
    inner = resized(image.height, image.width, short, long)
    pixels_3hw = F.interpolate(pixels_3HW[None], inner, mode="bilinear", align_corners=False)[0].round_()
    pixels_3hw = (pixels_3hw - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
    below, right = (-side % MULTIPLE for side in inner)
    return F.pad(pixels_3hw, (0, right, 0, below))[None], inner


def instances(
    class_logits_QK1: torch.Tensor,
    mask_logits_Qhw: torch.Tensor,
    *,
    padded: tuple[int, int],
    inner: tuple[int, int],
    size: tuple[int, int],
    threshold: float = THRESHOLD,
) -> list[Detection]:
    """The network's outputs for one picture -> its objects above ``threshold``, best first.

    Args:
        class_logits_QK1: the last column is "no object".
        mask_logits_Qhw: of any size; it covers the padded picture.
        padded, inner, size: (rows, columns) after padding, after resizing, and of the picture itself.
    """
    probabilities_QK = class_logits_QK1.softmax(-1)[:, :-1]
    classes = probabilities_QK.shape[1]
    best = probabilities_QK.flatten().topk(min(PAIRS, probabilities_QK.numel()))
    likely = best.values > threshold  # the mean inside the mask is at most 1, so no other pair can pass
    probability_M, pair_M = best.values[likely], best.indices[likely]
    if not len(pair_M):
        return []
    query_M = torch.div(pair_M, classes, rounding_mode="floor")
    masks = F.interpolate(mask_logits_Qhw[query_M][None], padded, mode="bilinear", align_corners=False)
    masks = masks[:, :, : inner[0], : inner[1]]
    logits_MHW = F.interpolate(masks, size, mode="bilinear", align_corners=False)[0]
    inside_MHW = logits_MHW > 0
    area_M = inside_MHW.flatten(1).sum(1)
    certainty_M = (logits_MHW.sigmoid() * inside_MHW).flatten(1).sum(1) / (area_M + 1e-6)
    score_M = probability_M * certainty_M
    found = []
    for m in score_M.argsort(descending=True, stable=True).tolist():
        if score_M[m] > threshold:
            mask_HW = inside_MHW[m].cpu().numpy()
            found.append(Detection(CLASSES[int(pair_M[m]) % classes], float(score_M[m]), box_around(mask_HW), mask_HW))
    return found


def box_around(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a mask that is not empty; right and bottom are exclusive."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@contextmanager
def _exact_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
