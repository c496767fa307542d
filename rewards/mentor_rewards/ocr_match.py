"""OCR match: is the text that a prompt asks for written in the picture?

Read by RapidOCR (PP-OCRv4 in ONNX, extra ``ocr``, weights in its wheel, Apache-2.0), which knows Latin letters, digits,
punctuation and Chinese.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from mentor_rewards.contract import Reward, RewardBatch, RewardError, RewardOutput, RewardSpec, asked_texts
from mentor_rewards.pixels import WHITE, rgb

_LONG_SIDE = 2000  # RapidOCR shrinks what is longer
_OBLONG = 4  # long side / short side


class OcrMatch(Reward):
    """1 - edit distance / length between the wanted text and the stretch of the read text nearest to it; in [0, 1].

    Wanted is ``metadata.text`` (a text or a list of texts), else what the prompt has in double quotes; without either
    it does not apply. Case, width and spaces do not count. Text beside the wanted one costs nothing: pages full of
    letters win, so keep a monitor beside it. Details: ``read``, all text found in the picture.
    """

    spec = RewardSpec(
        name="ocr_match",
        version="1",
        needs=frozenset({"text"}),
        range=(0.0, 1.0),
        probes=frozenset({"blur", "noise"}),
        licence="Apache-2.0",
    )

    def __init__(
        self, short_side: Annotated[int, Field(ge=32, le=_LONG_SIDE)] = 512, threads: Annotated[int, Field(ge=1)] = 1
    ) -> None:
        """
        Args:
            short_side: pixels; smaller pictures are enlarged to it (bicubic) before they are read.
            threads: of the CPU.
        """
        self.short_side, self.threads = short_side, threads
        self._reader: Any = None

    def check_files(self) -> None:
        """The package, which brings its networks."""
        _package()

    def load(self, device: str, dtype: str) -> None:
        """Build the reader; on the CPU in float32 only."""
        if device != "cpu":
            raise RewardError(f"ocr_match: runs on the device 'cpu' only, found '{device}'")
        self._reader = _package().RapidOCR(intra_op_num_threads=self.threads, inter_op_num_threads=1)
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)  # it warns of every picture without text

    def unload(self) -> None:
        """Drop the reader."""
        self._reader = None

    def score(self, batch: RewardBatch) -> RewardOutput:
        """One match per picture; None where no text is asked for."""
        if self._reader is None:
            raise RewardError("score before load")
        scores: list[float | None] = []
        reads: list[str | None] = []
        for image, prompt, facts in zip(batch.images, batch.prompts, batch.metadata, strict=True):
            wanted = wanted_texts(prompt, facts.get("text"))
            reads.append(self._read(image) if wanted else None)
            scores.append(match(wanted, reads[-1] or "") if wanted else None)
        reasons = ["the prompt asks for no text" if score is None else None for score in scores]
        return RewardOutput(scores, reasons, {"read": reads})

    def _read(self, image: Image.Image) -> str:
        picture = readable(rgb(image), self.short_side)
        found, _ = self._reader(np.asarray(picture)[:, :, ::-1])  # an array is taken for BGR
        return " ".join(text for _, text, _ in found or [])


def wanted_texts(prompt: str, stated: str | Sequence[str] | None = None) -> list[str]:
    """The folded texts that a picture should show, as ``RewardBatch.texts`` has them; [] for none."""
    return [folded(text) for text in asked_texts(prompt, stated)]


def folded(text: str) -> str:
    """Without case, spaces, and differences of width: what OCR cannot be held to."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def match(wanted: Sequence[str], read: str) -> float:
    """1 - sum of distances / sum of lengths over the wanted texts, wherever in the read text each stands; in [0, 1]."""
    page = folded(read)
    return 1 - sum(distance_to_part(text, page) for text in wanted) / sum(map(len, wanted))


def distance_to_part(text: str, page: str) -> int:
    """Smallest number of insertions, deletions and replacements that make ``text`` of a part of ``page``.

    At most ``len(text)``, the distance to the empty part. Sellers, J. Algorithms 1 (1980).
    """
    row = np.zeros(len(page) + 1, dtype=np.int64)  # the part may begin anywhere
    letters, steps = np.array(list(page), dtype="<U1"), np.arange(len(page) + 1)
    for letter in text:
        above = np.concatenate(([row[0] + 1], np.minimum(row[1:] + 1, row[:-1] + (letters != letter))))
        row = np.minimum.accumulate(above - steps) + steps  # skipping letters of the page costs one each
    return int(row.min())  # and end anywhere


def readable(image: Image.Image, short_side: int) -> Image.Image:
    """The short side to at least ``short_side`` pixels, as long as the long one stays within what the reader takes.

    What is still more oblong than 4:1 is put on a white ground: the reader enlarges by the short side, without bound.
    """
    factor = min(short_side / min(image.size), _LONG_SIDE / max(image.size))
    if factor > 1:
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    least = max(image.size) // _OBLONG
    if min(image.size) >= least:
        return image
    ground = Image.new("RGB", (max(image.width, least), max(image.height, least)), WHITE)
    ground.paste(image, ((ground.width - image.width) // 2, (ground.height - image.height) // 2))
    return ground


def _package() -> Any:
    try:
        import rapidocr_onnxruntime
    except ImportError as error:
        raise RewardError(f"{error}; install the extra: pip install 'mentor-rl[ocr]'") from error
    return rapidocr_onnxruntime
