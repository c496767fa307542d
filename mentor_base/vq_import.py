"""Names of the public VQ-16 checkpoint (LlamaGen, ``vq_ds16_t2i.pt`` and its kin) -> names of ``VQModel``.

| VQ-16 | here |
|---|---|
| {encoder,decoder}.conv_blocks.i.res.j | {encoder,decoder}.levels.i.blocks.j |
| ....nin_shortcut | ....shortcut |
| {encoder,decoder}.conv_blocks.i.attn.j.{norm,q,k,v,proj_out} | ....levels.i.attention.j.{norm,query,key,value,out} |
| encoder.conv_blocks.i.downsample.conv | encoder.levels.i.resample.conv |
| decoder.conv_blocks.i.upsample.conv | decoder.levels.i.resample.conv |
| {encoder,decoder}.mid.{0,1,2} | {encoder,decoder}.middle.{first,attention,second} |
| quant_conv, post_quant_conv | to_code, from_code |
| quantize.embedding.weight | codes.weight |
| quantize.codebook_used | left out: a usage log |

``conv_in``, ``norm_out`` and ``conv_out`` keep their names. Decoder level 0 is the lowest resolution in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from mentor_base.errors import UserError, nearest
from mentor_base.vq import VQConfig, VQModel

IGNORED = ("quantize.codebook_used",)
RENAMES = (
    (r"\.conv_blocks\.(\d+)\.res\.", r".levels.\1.blocks."),
    (r"\.conv_blocks\.(\d+)\.attn\.", r".levels.\1.attention."),
    (r"\.conv_blocks\.(\d+)\.(?:down|up)sample\.", r".levels.\1.resample."),
    (r"\.mid\.0\.", ".middle.first."),
    (r"\.mid\.1\.", ".middle.attention."),
    (r"\.mid\.2\.", ".middle.second."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"(attention(?:\.\d+)?)\.q\.", r"\1.query."),
    (r"(attention(?:\.\d+)?)\.k\.", r"\1.key."),
    (r"(attention(?:\.\d+)?)\.v\.", r"\1.value."),
    (r"(attention(?:\.\d+)?)\.proj_out\.", r"\1.out."),
    (r"^quant_conv\.", "to_code."),
    (r"^post_quant_conv\.", "from_code."),
    (r"^quantize\.embedding\.", "codes."),
)


def import_vq16(state: Mapping[str, torch.Tensor], config: VQConfig | None = None) -> dict[str, torch.Tensor]:
    """Rename a VQ-16 state dict; ``config`` defaults to VQ-16's sizes.

    Raises:
        UserError: a tensor is missing, unknown, or has another shape than ``config`` asks for.
    """
    renamed = {_renamed(key): tensor for key, tensor in state.items() if key not in IGNORED}
    with torch.device("meta"):
        wanted = VQModel(config or VQConfig()).state_dict()
    for key in renamed:
        if key not in wanted:
            raise UserError(f"VQ-16 checkpoint: unknown tensor '{key}'; {nearest(key, wanted)}")
    for key, tensor in wanted.items():
        if key not in renamed:
            raise UserError(f"VQ-16 checkpoint: expected tensor '{key}', which is missing")
        if renamed[key].shape != tensor.shape:
            raise UserError(
                f"VQ-16 checkpoint: {key}: expected shape {tuple(tensor.shape)}, found {tuple(renamed[key].shape)}"
            )
    return renamed


def _renamed(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key
