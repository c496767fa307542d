"""The Query-Former connector: a few learned queries read a picture, guided by a text (InstructBLIP, section 2).

transformers' InstructBLIP Q-Former over the patches of our vision tower, then a linear layer to the text width; each
picture fills as many prefix slots as there are queries.

Deviation from MENTOR's query variants: their tower is EVA ViT-g, ours is whatever ``vision_tower`` says, and the
Q-Former's ``encoder_hidden_size`` follows it.
Shapes: M pictures, P patches, F tower width, Q queries, G guide tokens, C text width.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import InstructBlipQFormerModel

from mentor_base.config import MentorConfig


class QueryConnector(nn.Module):
    """Patch features and a guiding text -> embeddings for the text encoder."""

    def __init__(self, config: MentorConfig, tower_width: int) -> None:
        super().__init__()
        qformer = config.qformer_config
        qformer.encoder_hidden_size = tower_width
        self.queries = nn.Parameter(torch.empty(config.queries, qformer.hidden_size))
        self.qformer = InstructBlipQFormerModel(qformer)
        self.project = nn.Linear(qformer.hidden_size, config.text_width)

    @property
    def dtype(self) -> torch.dtype:
        return self.project.weight.dtype

    def forward(
        self, features_MPF: torch.Tensor, guide_ids_MG: torch.Tensor | None, guide_mask_MG: torch.Tensor | None
    ) -> torch.Tensor:
        """-> embeddings_MQC. The guides are one text per picture; None: pictures without words (the dummy picture)."""
        pictures, count = features_MPF.shape[0], self.queries.shape[0]
        if guide_ids_MG is None or guide_mask_MG is None:
            guide_ids_MG = torch.zeros(pictures, 1, dtype=torch.long, device=features_MPF.device)
            guide_mask_MG = torch.ones_like(guide_ids_MG)
        seen_MQ = guide_mask_MG.new_ones(pictures, count)
        out = self.qformer(
            input_ids=guide_ids_MG,
            attention_mask=torch.cat([seen_MQ, guide_mask_MG], dim=1),
            query_embeds=self.queries.expand(pictures, -1, -1),
            encoder_hidden_states=features_MPF,
            encoder_attention_mask=guide_mask_MG.new_ones(features_MPF.shape[:2]),
        ).last_hidden_state
        # The text half of the last block feeds nothing, but a sharded trainer wants a gradient for each parameter.
        return self.project(out[:, :count]) + 0.0 * out[:, count:].sum()
