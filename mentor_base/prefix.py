"""What prompts are to the decoder.

Shapes: K prompts, T prefix slots (left-padded), C width of the prefix features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F


class Prefix(NamedTuple):
    """What the encoder makes of prompts, and all that the decoder knows about them.

    Attributes:
        features_KTC: encoder output, before the caption projection; left-padded.
        mask_KT: bool, False at padding.
        positions_KT2: cell whose rotation a slot carries, (0, 0) = identity.
    """

    features_KTC: torch.Tensor
    mask_KT: torch.Tensor
    positions_KT2: torch.Tensor

    def rows(self, index: torch.Tensor | slice) -> Prefix:
        """Some prompts of the batch."""
        return Prefix(self.features_KTC[index], self.mask_KT[index], self.positions_KT2[index])

    def detach(self) -> Prefix:
        return self._replace(features_KTC=self.features_KTC.detach())

    def to(self, device: torch.device | str) -> Prefix:
        return Prefix(*(part.to(device) for part in self))

    def padded(self, slots: int) -> Prefix:
        """The same prompts in ``slots`` slots: more padding on the left."""
        gap = slots - self.mask_KT.shape[1]
        if not gap:
            return self
        return Prefix(
            F.pad(self.features_KTC, (0, 0, gap, 0)),
            F.pad(self.mask_KT, (gap, 0)),
            F.pad(self.positions_KT2, (0, 0, gap, 0)),
        )

    @staticmethod
    def join(parts: list[Prefix]) -> Prefix:
        """One batch of several; padded to the longest."""
        longest = max(part.mask_KT.shape[1] for part in parts)
        return Prefix(*(torch.cat(columns) for columns in zip(*(p.padded(longest) for p in parts), strict=True)))
