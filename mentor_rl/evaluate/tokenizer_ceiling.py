"""The ceiling of any policy: pictures that went through its VQ tokenizer, without a policy's mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from mentor_base.errors import UserError
from mentor_base.images import to_images, to_pixels
from mentor_rl.evaluate.fingerprint import fingerprint

if TYPE_CHECKING:
    from mentor_base.vq import VQModel


class Ceiling:
    """The ceiling by the tokenizer that a recipe names, or none.

    Args:
        source: a checkpoint with a tokenizer; None: there is no ceiling.
    """

    def __init__(self, source: str | None) -> None:
        self.source = source
        self._vq: VQModel | None = None

    def check(self) -> None:
        """Whether the tokenizer's files are there, where one is named.

        Raises:
            UserError: they are not.
        """
        if self.source is not None:
            from mentor_base.checkpoint import model_folder

            folder = model_folder(self.source)
            if not any(folder.glob("*.safetensors")):
                raise UserError(f"{folder}: expected the tokenizer's weights, *.safetensors, found none")

    def load(self, device: str) -> None:
        """Bring the tokenizer to a device, where one is named."""
        if self.source is not None:
            from mentor_base.checkpoint import load_tokenizer_of

            self._vq = load_tokenizer_of(self.source).to(device)

    def unload(self) -> None:
        """Free the tokenizer."""
        self._vq = None

    @property
    def known(self) -> bool:
        """Whether there is one; after ``load``."""
        return self._vq is not None

    @property
    def said(self) -> str:
        """For the name of a judge: the tokenizer and its checksum, or nothing."""
        return "" if self.source is None else f"; tokenizer {self.source} {fingerprint(self.source)}"

    @property
    def side(self) -> int:
        """Of the pictures that come out."""
        return self._loaded.config.image_size

    def __call__(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Pictures as they come out."""
        return through_tokenizer(self._loaded, images)

    @property
    def _loaded(self) -> VQModel:
        assert self._vq is not None, "no tokenizer is loaded"
        return self._vq


def through_tokenizer(vq: VQModel, images: Sequence[Image.Image], batch: int = 64) -> list[Image.Image]:
    """Encode and decode -> squares of the tokenizer's side."""
    import torch

    out: list[Image.Image] = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            pixels = to_pixels(images[start : start + batch], size=vq.config.image_size).to(vq.device)
            out += to_images(vq.decode(vq.encode(pixels)))
    return out
