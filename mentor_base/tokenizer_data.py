"""Pictures for training the tokenizer on the emoji world, made cheaply: sprites are one block of bytes.

Shapes: S sprites, P scenes, B pictures of a batch, H rows, W columns. Pixels are floats in [-1, 1].

A batch is a pure function of (seed, step): most of it single sprites, moved, scaled, mirrored and laid on a coloured
ground; the rest targets and references of the world's tasks (composites, shapes), drawn once into a pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mentor_base.data.atlas import Atlas
from mentor_base.data.emoji import EmojiWorld
from mentor_base.data.shapes import COLOURS
from mentor_base.images import to_pixels
from mentor_base.settings import EmojiData, Split

SCENES = 2000
SCENE_SHARE = 0.2
WHITE_SHARE = 0.4
MOVED_SHARE = 0.7
SCALES = (0.55, 1.1)
SLACK = 0.06  # how far a moved sprite may leave the picture, as a share of half its side


class TrainingPictures:
    """Batches of pixels for the tokenizer."""

    def __init__(self, data: EmojiData, seed: int, scenes: int = SCENES) -> None:
        self.seed = seed
        self.sprites_S4HW = sprites(Atlas.load().pairs("train", data.styles))
        self.scenes_P3HW = draw_scenes(data, seed, scenes)
        self.grounds_G3 = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 255
        self.white = list(COLOURS).index("white")

    def batch(self, step: int, size: int) -> torch.Tensor:
        """pixels_B3HW of one step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        scenes = int((torch.rand(size, generator=generator) < SCENE_SHARE).sum()) if len(self.scenes_P3HW) else 0
        scenes = min(scenes, size - 1)  # torch moves no empty block of sprites
        moved = self._moved(self._drawn(self.sprites_S4HW, size - scenes, generator), generator)
        singles = self._on_grounds(moved, generator)
        if not scenes:
            return singles * 2 - 1
        pool = self._drawn(self.scenes_P3HW, scenes, generator).float() / 255
        return torch.cat([singles, pool]) * 2 - 1

    def _drawn(self, block: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        return block[torch.randint(len(block), (count,), generator=generator)]

    def _moved(self, sprites_B4HW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mirror half of the sprites; scale and shift most of them."""
        count = len(sprites_B4HW)
        draw = torch.rand(count, 5, generator=generator)
        scale = SCALES[0] + (SCALES[1] - SCALES[0]) * draw[:, 0]
        scale = torch.where(draw[:, 1] < MOVED_SHARE, scale, torch.ones(count))
        room = (1 - scale).clamp(min=0) + SLACK * (scale != 1)
        shift_x, shift_y = ((draw[:, i] * 2 - 1) * room for i in (2, 3))
        mirror = torch.where(draw[:, 4] < 0.5, -1.0, 1.0)
        affine = torch.zeros(count, 2, 3)
        affine[:, 0, 0], affine[:, 0, 2] = mirror / scale, -shift_x * mirror / scale
        affine[:, 1, 1], affine[:, 1, 2] = 1 / scale, -shift_y / scale
        field = F.affine_grid(affine, list(sprites_B4HW.shape), align_corners=False)
        return F.grid_sample(sprites_B4HW.float() / 255, field, align_corners=False)

    def _on_grounds(self, sprites_B4HW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        count = len(sprites_B4HW)
        pick = torch.randint(len(self.grounds_G3), (count,), generator=generator)
        pick[torch.rand(count, generator=generator) < WHITE_SHARE] = self.white
        return on_grounds(sprites_B4HW, self.grounds_G3[pick])


def on_grounds(sprites_B4HW: torch.Tensor, grounds_B3: torch.Tensor) -> torch.Tensor:
    """Premultiplied RGBA in [0, 1] over plain colours in [0, 1] -> RGB in [0, 1]."""
    return (sprites_B4HW[:, :3] + (1 - sprites_B4HW[:, 3:]) * grounds_B3[:, :, None, None]).clamp(0, 1)


def sprites(pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """sprites_S4HW: bytes of the (subject, style) pairs, RGBA premultiplied by alpha so that they can be resampled."""
    atlas = Atlas.load()
    arrays = [_premultiplied(atlas.sprite(subject, style)) for subject, style in pairs]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def held_out(split: Split, grounds: str, limit: int | None, data: EmojiData) -> torch.Tensor:
    """pixels_S3HW of a split's sprites, unmoved, on ``grounds`` "white" or "coloured"; ``limit`` takes them evenly."""
    pairs = Atlas.load().pairs(split, data.styles)
    if limit is not None and limit < len(pairs):
        pairs = tuple(pairs[i * len(pairs) // limit] for i in range(limit))
    names = [name for name in COLOURS if name != "white"]
    chosen = [COLOURS["white" if grounds == "white" else names[i % len(names)]] for i in range(len(pairs))]
    grounds_S3 = torch.tensor(chosen, dtype=torch.float32) / 255
    return on_grounds(sprites(pairs).float() / 255, grounds_S3) * 2 - 1


def draw_scenes(data: EmojiData, seed: int, count: int) -> torch.Tensor:
    """scenes_P3HW: bytes of targets and references of all tasks of the world, in turn."""
    world = EmojiWorld(data)
    tasks = [task for task in world.tasks if task != "subject" or len(world.styles) > 1]
    pictures: list[Image.Image] = []
    index = 0
    while len(pictures) < count:
        example = world.example(tasks[index % len(tasks)], "train", seed, index)
        pictures += [example.target, *example.images]
        index += 1
    if not pictures:
        return torch.empty(0, 3, world.image_size, world.image_size, dtype=torch.uint8)
    return to_pixels(pictures[:count]).add_(1).mul_(127.5).round_().byte()


def _premultiplied(sprite: Image.Image) -> np.ndarray:
    rgba = np.asarray(sprite.convert("RGBA"), dtype=np.float32)
    alpha = rgba[..., 3:]
    return np.concatenate([rgba[..., :3] * alpha / 255, alpha], axis=-1).round().astype(np.uint8)
