"""Which colour an object has, by CLIP ViT-L/14: GenEval's zero-shot classifier over ten colours.

The object's surroundings are painted #999 and the picture is cropped to its box; three sentences a colour are averaged
and the nearest colour wins. Weights: transformers' copy of OpenAI's; the published evaluator reads the same ones
through open_clip.

Deviation: a box that rounds to nothing is widened to one pixel, where the published evaluator would fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from mentor_rewards.clip_towers import ClipTower, find_clip
from mentor_rewards.contract import RewardError
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.images import over_white
from mentor_rl.evaluate.geneval import COLOURS, Detection
from mentor_rl.evaluate.recipes import CLIP_L14

GROUND = "#999"
_PUBLISHED = (1024, 14)  # width and patch: a local folder cannot prove its origin, but a wrong size can be seen
SENTENCES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


class ColourNamer(Protocol):
    """Names colours. ``name`` goes into results; ``stand_in``: not the classifier that the benchmark asks for."""

    name: str
    stand_in: bool

    def __call__(self, image: Image.Image, objects: Sequence[Detection], name: str) -> list[str]:
        """One of COLOURS for each object; ``name`` is their class."""


def find_colours(source: str | Path) -> None:
    """Whether CLIP's files are there, or can be fetched.

    Raises:
        UserError: they are not.
    """
    try:
        find_clip(source)
    except RewardError as error:
        raise UserError(f"colours: {error}") from error


class ClipColours:
    """CLIP's choice among COLOURS.

    Args:
        source: folder or hub id of a CLIPModel with tokenizer.

    Raises:
        UserError: no such model.
    """

    def __init__(self, source: str | Path = CLIP_L14, device: str = "cpu") -> None:
        try:
            self.tower = ClipTower.load(source, device, "float32")
        except RewardError as error:
            raise UserError(f"colours: {error}") from error
        digests = " ".join(digest[:12] for digest in self.tower.checksums.values())
        vision = self.tower.model.config.vision_config
        self.name = f"CLIP {source} {digests}"
        self.stand_in = (vision.hidden_size, vision.patch_size) != _PUBLISHED
        self._classifiers: dict[str, torch.Tensor] = {}

    def __call__(self, image: Image.Image, objects: Sequence[Detection], name: str) -> list[str]:
        """One of COLOURS for each object."""
        if name not in self._classifiers:
            self._classifiers[name] = colour_vectors(self.tower, name)
        seen = self.tower.image_embeddings([cut_out(image, each) for each in objects])
        return [COLOURS[index] for index in (seen @ self._classifiers[name].T).argmax(1).tolist()]


def colour_vectors(tower: ClipTower, name: str) -> torch.Tensor:
    """One unit vector per colour, the mean of its sentences' unit vectors -> [10, C]."""
    texts = [sentence.format(colour=colour, name=name) for colour in COLOURS for sentence in SENTENCES]
    vectors = tower.text_embeddings(texts).unflatten(0, (len(COLOURS), len(SENTENCES)))
    return torch.nn.functional.normalize(vectors.mean(1), dim=-1)


def cut_out(image: Image.Image, each: Detection) -> Image.Image:
    """The object in its box, the rest of it #999."""
    picture = over_white(image)
    alone = Image.new("RGB", picture.size, GROUND)
    alone.paste(picture, mask=Image.fromarray(each.mask_HW))
    left, top, right, bottom = (round(edge) for edge in each.box)
    return alone.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
