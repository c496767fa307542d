"""Pictures that MENTOR makes while it reads its data, made here from (picture, mask, random numbers) alone.

Sizes are one side S in pixels: pictures, masks and backgrounds are squeezed to S x S first, as the reference does.

Deviations from the reference (dataset/t2i.py):
- a mask counts where it is above half of its own maximum; there above zero, so that JPEG noise counts as object.
- an empty or unreadable mask is an error; there it becomes the whole picture.
- a distorted object that is larger than the background is shrunk until it fits; there its size is drawn again.
"""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image

from mentor_base.images import middle, over_white

LANCZOS, BICUBIC = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC
SCALE = (0.2, 1.0)
DISTORTED = 0.5  # share of the objects that are stretched, turned and tilted
STRETCH = (0.7, 1.3)
SHEAR = 0.3
TURN = 20.0  # degrees
TILT = 0.2  # of the side, how far a corner moves


def squeezed(image: Image.Image, side: int) -> Image.Image:
    """RGB [S, S], whatever the proportions were."""
    return over_white(image).resize((side, side), LANCZOS)


def binary_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Mode "L" of 0 and 255 at ``size``; masks of 0 and 1 are as good as those of 0 and 255.

    Raises:
        ValueError: a mask without an object.
    """
    grey = np.asarray(mask.convert("L").resize(size, Image.Resampling.NEAREST))
    if grey.max() == 0:
        raise ValueError("an empty mask")
    return Image.fromarray(np.where(grey * 2.0 > grey.max(), 255, 0).astype(np.uint8))


def cut_out(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The object on black: the target of segmentation."""
    ground = Image.new("RGB", image.size)
    ground.paste(image, mask=mask)
    return ground


def object_crop(image: Image.Image, mask: Image.Image, rng: Random) -> Image.Image:
    """The object's bounding box, or by an even chance its cut-out, padded with black to a square."""
    source = cut_out(image, mask) if rng.random() < 0.5 else image
    box = mask.getbbox()
    assert box is not None, "binary_mask refuses empty ones"
    width, height = box[2] - box[0], box[3] - box[1]
    side = max(width, height)
    ground = Image.new("RGB", (side, side))
    ground.paste(source.crop(box), ((side - width) // 2, (side - height) // 2))
    return ground


def distracting_scene(image: Image.Image, mask: Image.Image, background: Image.Image, rng: Random) -> Image.Image:
    """The reference of recovery: the object, scaled and perhaps distorted, somewhere on another picture."""
    side = image.width
    thing = image.convert("RGBA")
    thing.putalpha(mask)
    scaled = max(1, round(side * rng.uniform(*SCALE)))
    thing = thing.resize((scaled, scaled), LANCZOS)
    if rng.random() < DISTORTED:
        thing = _distorted(thing, rng)
    if max(thing.size) > side:
        factor = side / max(thing.size)
        thing = thing.resize((max(1, int(thing.width * factor)), max(1, int(thing.height * factor))), LANCZOS)
    scene = squeezed(middle(background), side)
    corner = rng.randint(0, side - thing.width), rng.randint(0, side - thing.height)
    scene.paste(thing, corner, mask=thing.getchannel("A"))
    return scene


def _distorted(thing: Image.Image, rng: Random) -> Image.Image:
    """Stretched and sheared, turned, then tilted; the frame grows with it."""
    width, height = thing.size
    wide, high = (max(1, round(length * rng.uniform(*STRETCH))) for length in (width, height))
    lean_x, lean_y = (rng.uniform(-SHEAR, SHEAR) for _ in range(2))
    corners = [(x + lean_x * y, y + lean_y * x) for x, y in ((0, 0), (wide, 0), (wide, high), (0, high))]
    thing = _onto(thing, corners)
    thing = thing.rotate(rng.uniform(-TURN, TURN), BICUBIC, expand=True)
    width, height = thing.size
    moved = [
        (x + rng.uniform(-TILT, TILT) * width, y + rng.uniform(-TILT, TILT) * height)
        for x, y in ((0, 0), (width, 0), (width, height), (0, height))
    ]
    return _onto(thing, moved)


def _onto(thing: Image.Image, corners: list[tuple[float, float]]) -> Image.Image:
    """The picture with its four corners (clockwise from the upper left) at these places, in a frame that holds them."""
    left, top = (min(corner[axis] for corner in corners) for axis in (0, 1))
    placed = [(x - left, y - top) for x, y in corners]
    size = tuple(max(1, int(np.ceil(max(corner[axis] for corner in placed)))) for axis in (0, 1))
    width, height = thing.size
    equations, values = [], []
    for (x, y), (u, v) in zip(placed, ((0, 0), (width, 0), (width, height), (0, height)), strict=True):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    back = np.linalg.solve(np.array(equations), np.array(values))  # PIL asks for the map from the result to the source
    return thing.transform((size[0], size[1]), Image.Transform.PERSPECTIVE, back.tolist(), BICUBIC)
