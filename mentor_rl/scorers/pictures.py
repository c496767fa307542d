"""Training pictures of the scorers: sprites on coloured grounds, augmented as tensors, a pure function of a generator.

Generated pictures are softer than sprites, so a share of the pictures is damaged as a tokenizer damages them (blur,
lost resolution, noise): a scorer must neither fail on a soft picture nor be fooled by one.

Shapes: N pictures, M sprites of a bank, H rows, W columns (H = W = 64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mentor_base.data.atlas import Atlas
from mentor_base.data.shapes import COLOURS
from mentor_base.errors import UserError, nearest
from mentor_base.images import to_pixels
from mentor_base.settings import Split

COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)


@dataclass(frozen=True)
class Augmentation:
    """How far a picture is changed. Angles in degrees, shifts as a share of the side, colours of the range."""

    scale: tuple[float, float] = (0.85, 1.1)
    shift: float = 0.05
    rotation: float = 6.0
    flip: float = 0.5
    gain: float = 0.06
    ground: float = 0.05
    damaged: float = 0.25
    blur: float = 1.2
    smallest: int = 28
    noise: float = 0.05
    erased: float = 0.0


AUGMENTATIONS = {
    "light": Augmentation(),
    "strong": Augmentation(
        scale=(0.6, 1.15), rotation=18.0, gain=0.15, damaged=0.65, blur=1.6, smallest=20, noise=0.08
    ),
}
PLAIN = Augmentation(scale=(0.8, 1.0), shift=0.03, rotation=0.0, flip=0.0, gain=0.0, ground=0.0, damaged=0.0, noise=0.0)
SOFT = replace(PLAIN, damaged=1.0, noise=0.02)


@dataclass(frozen=True)
class SpriteBank:
    """The sprites of one split in memory.

    Attributes:
        rgba_M4HW: uint8, straight alpha.
        subject_M, style_M: index into ``subjects`` / ``styles``.
        subjects: ids of the subjects of the split, sorted.
        styles: ids of the styles, in the atlas's order.
        rows: rows of each subject.
    """

    rgba_M4HW: torch.Tensor
    subject_M: np.ndarray
    style_M: np.ndarray
    subjects: tuple[str, ...]
    styles: tuple[str, ...]
    rows: tuple[np.ndarray, ...]

    @classmethod
    def of(
        cls,
        atlas: Atlas,
        split: Split,
        styles: Sequence[str] | None = None,
        subjects: tuple[str, ...] | None = None,
    ) -> SpriteBank:
        """All sprites of a split in the atlas's sorted order; with ``subjects``, theirs only, numbered as given."""
        for style in styles or ():
            if style not in atlas.styles:
                raise UserError(f"data.styles: unknown style '{style}'; {nearest(style, atlas.styles)}")
        used = tuple(s for s in atlas.styles if styles is None or s in styles)
        pairs = atlas.pairs(split, used)
        named = tuple(sorted({subject for subject, _ in pairs})) if subjects is None else subjects
        number = {name: i for i, name in enumerate(named)}
        kept = [pair for pair in pairs if pair[0] in number]
        subject_M = np.array([number[subject] for subject, _ in kept])
        return cls(
            rgba_M4HW=torch.from_numpy(np.stack([atlas.pixels(*pair) for pair in kept]))
            .permute(0, 3, 1, 2)
            .contiguous(),
            subject_M=subject_M,
            style_M=np.array([used.index(style) for _, style in kept]),
            subjects=named,
            styles=used,
            rows=tuple(np.flatnonzero(subject_M == i) for i in range(len(named))),
        )

    def __len__(self) -> int:
        return len(self.rgba_M4HW)

    def draw_rows(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """``count`` rows, every style equally likely (the small styles would drown otherwise)."""
        share = 1.0 / np.bincount(self.style_M, minlength=len(self.styles))[self.style_M]
        return rng.choice(len(self), size=count, p=share / share.sum())

    def draw_views(self, rng: np.random.Generator, subjects: int, views: int) -> np.ndarray:
        """Rows of ``subjects`` distinct subjects, ``views`` drawings each in different styles, subject by subject."""
        able = [i for i, rows in enumerate(self.rows) if len(rows) >= views]
        if not 0 < subjects <= len(able):
            raise UserError(f"optimisation.batch: expected 1 to {len(able)} subjects x {views} views, found {subjects}")
        chosen = rng.choice(able, size=subjects, replace=False)
        return np.concatenate([rng.choice(self.rows[i], size=views, replace=False) for i in chosen])


def draw_grounds(rng: np.random.Generator, count: int, white: float = 0.3) -> np.ndarray:
    """Indices into COLOUR_NAMES: white with probability ``white``, else any colour alike."""
    grounds = rng.integers(len(COLOUR_NAMES), size=count)
    return np.where(rng.random(count) < white, COLOUR_NAMES.index("white"), grounds)


def compose(
    rgba_N4HW: torch.Tensor, grounds_N: np.ndarray, rng: np.random.Generator, how: Augmentation
) -> torch.Tensor:
    """Sprites (uint8, straight alpha) on grounds -> pixels_N3HW in [-1, 1]."""
    count = len(rgba_N4HW)
    straight = rgba_N4HW.float().div_(255.0)
    alpha = straight[:, 3:]
    moved = _move(torch.cat([straight[:, :3] * alpha, alpha], dim=1), rng, how)
    table = np.array([COLOURS[name] for name in COLOUR_NAMES], dtype=np.float32) / 255.0
    ground = table[grounds_N] + rng.uniform(-how.ground, how.ground, (count, 3)).astype(np.float32)
    picture = moved[:, :3] + (1.0 - moved[:, 3:]) * torch.from_numpy(ground.clip(0, 1))[:, :, None, None]
    gain = rng.uniform(1 - how.gain, 1 + how.gain, (count, 3, 1, 1)).astype(np.float32)
    picture = _damage(picture * torch.from_numpy(gain), rng, how)
    if how.erased:
        picture = _erase(picture, rng, how.erased)
    return picture.clamp_(0, 1).mul_(2.0).sub_(1.0)


def _move(premultiplied_N4HW: torch.Tensor, rng: np.random.Generator, how: Augmentation) -> torch.Tensor:
    count = len(premultiplied_N4HW)
    angle = rng.uniform(-how.rotation, how.rotation, count) * math.pi / 180.0
    zoom = 1.0 / rng.uniform(*how.scale, count)
    mirror = np.where(rng.random(count) < how.flip, -1.0, 1.0)
    shift = rng.uniform(-2 * how.shift, 2 * how.shift, (count, 2))
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    rows = np.stack([cos * mirror, -sin * mirror, shift[:, 0], sin, cos, shift[:, 1]], axis=1)
    theta = torch.from_numpy(rows.reshape(count, 2, 3).astype(np.float32))
    grid = F.affine_grid(theta, list(premultiplied_N4HW.shape), align_corners=False)
    return F.grid_sample(premultiplied_N4HW, grid, align_corners=False)


def _damage(picture_N3HW: torch.Tensor, rng: np.random.Generator, how: Augmentation) -> torch.Tensor:
    """A share of the pictures is blurred, another one loses resolution; noise goes over both."""
    count, side = len(picture_N3HW), picture_N3HW.shape[-1]
    kind = rng.random(count)
    blurred = np.flatnonzero(kind < how.damaged / 2)
    shrunk = np.flatnonzero((kind >= how.damaged / 2) & (kind < how.damaged))
    small = int(rng.integers(how.smallest, side - 4))
    sigma = rng.uniform(0.4, how.blur, len(blurred))
    noise = rng.uniform(0, how.noise, (count, 1, 1, 1)) * (kind < how.damaged)[:, None, None, None]
    grain = rng.standard_normal((count, 3, side, side), dtype=np.float32) if how.noise else None
    out = picture_N3HW.clone()
    if len(blurred):
        out[blurred] = blur(picture_N3HW[blurred], sigma)
    if len(shrunk):
        tiny = F.interpolate(picture_N3HW[shrunk], size=(small, small), mode="area")
        out[shrunk] = F.interpolate(tiny, size=(side, side), mode="bilinear", align_corners=False)
    if grain is not None:
        out += torch.from_numpy(noise.astype(np.float32) * grain)
    return out


def blur(picture_N3HW: torch.Tensor, sigma_N: np.ndarray) -> torch.Tensor:
    """Gaussian blur, one sigma (pixels) per picture, 7 taps, edges repeated."""
    count, _, height, width = picture_N3HW.shape
    taps = np.exp(-0.5 * (np.arange(-3, 4)[None] / sigma_N[:, None]) ** 2)
    kernel = torch.from_numpy((taps / taps.sum(1, keepdims=True)).astype(np.float32)).repeat_interleave(3, dim=0)
    flat = F.pad(picture_N3HW.reshape(1, count * 3, height, width), (3, 3, 3, 3), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=count * 3)
    return F.conv2d(flat, kernel[:, None, :, None], groups=count * 3).reshape(count, 3, height, width)


def _erase(picture_N3HW: torch.Tensor, rng: np.random.Generator, share: float) -> torch.Tensor:
    """Grey squares over a share of the pictures: the scorer has to look at more than one spot."""
    side = picture_N3HW.shape[-1]
    for i in np.flatnonzero(rng.random(len(picture_N3HW)) < share):
        size = int(rng.integers(side // 8, side // 3))
        top, left = rng.integers(0, side - size, 2)
        picture_N3HW[i, :, top : top + size, left : left + size] = float(rng.random())
    return picture_N3HW


def damaged(images: Sequence[Image.Image], sigma: float) -> list[Image.Image]:
    """Blurred copies, for tests and validation."""
    from mentor_base.images import to_images

    pixels = to_pixels(images).add(1).div(2)
    return to_images(blur(pixels, np.full(len(pixels), sigma)).mul(2).sub(1))
