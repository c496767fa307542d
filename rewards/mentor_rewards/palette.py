"""The colours that prompts of the emoji world name, and how far apart two colours look.

The table repeats mentor_base.data.shapes.COLOURS, since the two packages import neither each other; a test in tests/rl
holds them equal. Other worlds pass their own table as an option.
"""

from __future__ import annotations

import numpy as np

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "gray": (150, 150, 150),
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 160, 70),
    "cyan": (60, 200, 215),
    "blue": (50, 100, 220),
    "purple": (130, 60, 180),
    "pink": (245, 150, 190),
    "brown": (125, 80, 45),
}


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] in [0, 1] -> OKLab [..., 3] (Ottosson 2020): distances there follow what people see.

    Black to white is 1.0 apart, neighbouring named colours about 0.1 to 0.3.
    """
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ _TO_CONES.T)
    return cones @ _TO_LAB.T


_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
