"""The MLP connector between vision tower and text encoder; the other kind is in query_connector.py.

Linear, GELU (erf), linear, both with bias, as MENTOR's code and checkpoint have it. The paper writes SiLU and a hidden
width of 4096: ``connector_activation="silu", connector_width=4096``.

Deviation, with ``vision_tower="tokenizer"`` only: a linear path beside the MLP, which makes copying easy to learn.
Shapes: M pictures, P patches, F tower width, C text width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mentor_base.config import MentorConfig


class MLPConnector(nn.Module):
    """Patch features -> embeddings for the text encoder, one per patch."""

    def __init__(self, config: MentorConfig, tower_width: int) -> None:
        super().__init__()
        inner = config.connector_width or config.text_width
        self.activation = F.silu if config.connector_activation == "silu" else F.gelu
        self.fc1 = nn.Linear(tower_width, inner)
        self.fc2 = nn.Linear(inner, config.text_width)
        linear_path = config.vision_tower == "tokenizer"
        self.skip = nn.Linear(tower_width, config.text_width, bias=False) if linear_path else None

    @property
    def dtype(self) -> torch.dtype:
        return self.fc1.weight.dtype

    def forward(
        self,
        features_MPF: torch.Tensor,
        guide_ids_MG: torch.Tensor | None = None,
        guide_mask_MG: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """features_MPF -> embeddings_MPC. Guiding texts are for the query connector; there are none here."""
        mapped = self.fc2(self.activation(self.fc1(features_MPF)))
        return mapped if self.skip is None else mapped + self.skip(features_MPF)
