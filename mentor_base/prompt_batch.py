"""Batches of prompts cut along their lengths, so that short prompts are not computed as padding.

A caption fills a dozen slots, a reference picture alone 64: in a mixed batch every second prefix slot would be padding.
Shapes: K prompts, T slots, M pictures (flat, in prompt order), R rows picked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

LEAST_SAVING = 0.15  # of the slots; a cut that saves less costs more in small matrices than it brings


class PromptBatch(NamedTuple):
    """What the encoder reads; left-padded."""

    input_ids_KT: torch.Tensor
    attention_mask_KT: torch.Tensor
    pixel_values_M3HW: torch.Tensor | None = None
    guide_ids_MG: torch.Tensor | None = None
    guide_mask_MG: torch.Tensor | None = None

    def rows(self, index_R: torch.Tensor, placeholder: int, picture_slots: int) -> PromptBatch:
        """Some of the prompts, in ascending order, with their pictures; padded to the longest of them only."""
        ids, mask = self.input_ids_KT[index_R], self.attention_mask_KT[index_R]
        padding = mask.shape[1] - int(mask.sum(1).max())
        pictures_K = (self.input_ids_KT == placeholder).sum(1) // picture_slots
        owner_M = torch.arange(len(pictures_K), device=ids.device).repeat_interleave(pictures_K)
        picked_M = torch.isin(owner_M, index_R)

        def of_pictures(column: torch.Tensor | None) -> torch.Tensor | None:
            if column is None or len(column) != len(owner_M):
                return column  # the encoder tells which prompt lacks its pictures
            return column[picked_M] if picked_M.any() else None

        pictures = map(of_pictures, (self.pixel_values_M3HW, self.guide_ids_MG, self.guide_mask_MG))
        return PromptBatch(ids[:, padding:], mask[:, padding:], *pictures)


def length_buckets(lengths_K: Sequence[int]) -> list[torch.Tensor]:
    """Ascending rows of one bucket, or of two where a cut saves at least LEAST_SAVING of the slots."""
    order = sorted(range(len(lengths_K)), key=lambda row: lengths_K[row])
    longest = lengths_K[order[-1]]

    def slots(cut: int) -> int:
        return cut * lengths_K[order[cut - 1]] + (len(order) - cut) * longest

    cut = min(range(1, len(order)), key=slots, default=len(order))
    if slots(cut) > (1 - LEAST_SAVING) * len(order) * longest:
        return [torch.arange(len(order))]
    return [torch.tensor(sorted(part)) for part in (order[:cut], order[cut:])]
