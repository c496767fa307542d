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
    """What the encoder reads: input_ids_KT, attention_mask_KT (left-padded), pixel_values_M3HW, guide_*_MG."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    pixel_values: torch.Tensor | None = None
    guide_ids: torch.Tensor | None = None
    guide_mask: torch.Tensor | None = None

    def rows(self, index_R: torch.Tensor, placeholder: int, picture_slots: int) -> PromptBatch:
        """Some of the prompts, in ascending order, with their pictures; padded to the longest of them only."""
        ids, mask = self.input_ids[index_R], self.attention_mask[index_R]
        padding = mask.shape[1] - int(mask.sum(1).max())
        pictures_K = (self.input_ids == placeholder).sum(1) // picture_slots
        owner_M = torch.arange(len(pictures_K), device=ids.device).repeat_interleave(pictures_K)
        picked_M = torch.isin(owner_M, index_R)

        def of_pictures(column: torch.Tensor | None) -> torch.Tensor | None:
            if column is None or len(column) != len(owner_M):
                return column  # the encoder tells which prompt lacks its pictures
            return column[picked_M] if picked_M.any() else None

        pictures = map(of_pictures, (self.pixel_values, self.guide_ids, self.guide_mask))
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
