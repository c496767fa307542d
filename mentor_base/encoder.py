"""The multimodal encoder: pictures through a vision tower and the connector into the text, all through T5's encoder.

CLIP's features are those after its second-to-last block, without the class token and without the post-norm. Patch
embeddings replace the placeholders in row-major order, then T5 reads the whole (MENTOR's ``llavat5``). T5 has relative
positions only, so left padding gives the numbers of right padding.

Against MENTOR: a count of placeholders that does not fit the pictures is an error, where MENTOR shifts a neighbour's
patches in. Small-size option: ``vision_tower="tokenizer"`` (see config.py).
Shapes: K prompts, T slots, M pictures (flat, in prompt order), P patches, S slots of a picture, G guide tokens, F tower
width, C text width.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import CLIPVisionModel, T5EncoderModel

from mentor_base.config import MentorConfig
from mentor_base.connector import MLPConnector
from mentor_base.errors import UserError
from mentor_base.prefix import Prefix
from mentor_base.query_connector import QueryConnector
from mentor_base.rope import cells
from mentor_base.vq import VQModel


class ClipTower(nn.Module):
    """CLIP's patch features. Trained only where the freeze plan says so."""

    def __init__(self, config: MentorConfig) -> None:
        super().__init__()
        self.clip = CLIPVisionModel(config.clip_config)
        self.width = int(config.clip_config.hidden_size)
        self.image_size = int(config.clip_config.image_size)

    def forward(self, pixels_M3HW: torch.Tensor, vq: VQModel) -> torch.Tensor:
        """-> features_MPF. ``vq`` is not used."""
        pixels_M3HW = pixels_M3HW.to(self.clip.post_layernorm.weight.dtype)
        out = self.clip(pixel_values=pixels_M3HW, output_hidden_states=True)
        features_MPF = out.hidden_states[-2][:, 1:]
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.clip.parameters()):
            # The last block and the post-norm feed nothing, but a sharded trainer wants a gradient for each parameter.
            features_MPF = features_MPF + 0.0 * out.pooler_output.sum()
        return features_MPF


class TokenizerTower(nn.Module):
    """The frozen trunk of the policy's own VQ encoder; holds no parameter."""

    def __init__(self, config: MentorConfig, width: int) -> None:
        super().__init__()
        self.width, self.image_size = width, int(config.vq_config.image_size)

    @torch.no_grad()
    def forward(self, pixels_M3HW: torch.Tensor, vq: VQModel) -> torch.Tensor:
        """-> features_MPF."""
        return vq.trunk_features(pixels_M3HW)


class MultimodalEncoder(nn.Module):
    """Vision tower, connector, T5 encoder."""

    def __init__(self, config: MentorConfig, trunk_width: int) -> None:
        super().__init__()
        self.config = config
        borrowed = config.vision_tower == "tokenizer"
        self.vision: ClipTower | TokenizerTower = TokenizerTower(config, trunk_width) if borrowed else ClipTower(config)
        kind = QueryConnector if config.connector == "query" else MLPConnector
        self.connector: MLPConnector | QueryConnector = kind(config, self.vision.width)
        self.text = T5EncoderModel(config.t5_config)

    def forward(
        self,
        input_ids_KT: torch.Tensor,
        attention_mask_KT: torch.Tensor,
        pixel_values_M3HW: torch.Tensor | None,
        vq: VQModel,
        guide_ids_MG: torch.Tensor | None = None,
        guide_mask_MG: torch.Tensor | None = None,
    ) -> Prefix:
        """Encode prompts; ``guide_*`` are one text per picture, for the query connector.

        Raises:
            UserError: placeholders and pictures do not match; names the sample.
        """
        marks_KT = input_ids_KT == self.config.placeholder_id
        embeddings = self.text.get_input_embeddings()(input_ids_KT)
        pictures = 0 if pixel_values_M3HW is None else pixel_values_M3HW.shape[0]
        self._check(marks_KT, pictures)
        if pictures and pixel_values_M3HW is not None:
            slots_MSC = self._slots(pixel_values_M3HW, vq, guide_ids_MG, guide_mask_MG).to(embeddings.dtype)
            embeddings = embeddings.masked_scatter(marks_KT.unsqueeze(-1), slots_MSC.flatten(0, 1))
        else:
            embeddings = embeddings + 0.0 * self._slots(self._dummy(embeddings), vq).sum()
        out = self.text(inputs_embeds=embeddings, attention_mask=attention_mask_KT)
        return Prefix(out.last_hidden_state, attention_mask_KT.bool(), self._positions(marks_KT))

    def _slots(
        self,
        pixels_M3HW: torch.Tensor,
        vq: VQModel,
        guide_ids_MG: torch.Tensor | None = None,
        guide_mask_MG: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pictures -> embeddings_MSC."""
        features = self.vision(pixels_M3HW, vq).to(self.connector.dtype)
        return self.connector(features, guide_ids_MG, guide_mask_MG)

    def _dummy(self, like: torch.Tensor) -> torch.Tensor:
        """A blank picture: the tower runs in text-only batches too, so that all ranks reduce the same gradients."""
        side = self.vision.image_size
        return torch.zeros(1, 3, side, side, device=like.device, dtype=like.dtype)

    def _positions(self, marks_KT: torch.Tensor) -> torch.Tensor:
        """Rotation cells of the slots: with "grid", patch p of each picture sits at its place in the image."""
        shape = (*marks_KT.shape, 2)
        if self.config.reference_positions == "prefix":
            return torch.zeros(shape, device=marks_KT.device)
        scale = self.config.grid / self.config.patch_grid
        places_P2 = cells(self.config.patch_grid, marks_KT.device) * scale + (scale - 1) / 2  # middles of patches
        order_KT = (marks_KT.cumsum(1) - 1).clamp(min=0) % self.config.picture_slots
        return places_P2[order_KT] * marks_KT.unsqueeze(-1)

    def _check(self, marks_KT: torch.Tensor, pictures: int) -> None:
        slots = self.config.picture_slots
        counts = marks_KT.sum(1).tolist()
        for sample, count in enumerate(counts):
            if count % slots:
                raise UserError(f"sample {sample} of the batch: expected {slots} placeholders a picture, found {count}")
        if sum(counts) != pictures * slots:
            held = ", ".join(str(count // slots) for count in counts)
            raise UserError(
                f"batch: expected {sum(counts) // slots} pictures for the placeholders of its samples ({held}), "
                f"found {pictures}"
            )
