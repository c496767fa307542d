"""Our tensors' names in the checkpoints of others: one table for import and export, so that they cannot drift apart.

A rule is (our name, theirs). ``*`` stands for a number; a name that ends in a dot stands for all below it. Two names on
their side: their tensors are the upper and the lower rows of ours. The first rule that fits holds.

MENTOR's and LlamaGen's decoders have the same names. Their rotation of the prefix differs (config.py,
``prefix_rotation``), and no weight says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

Rule = tuple[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Layout:
    """How a kind of checkpoint names the tensors that we have.

    Attributes:
        title: for messages.
        rules: our names -> theirs.
        left_out: patterns of their tensors that hold nothing of the model we build.
    """

    title: str
    rules: tuple[Rule, ...]
    left_out: tuple[str, ...] = ()

    def keys(self, name: str) -> tuple[str, ...]:
        """Their names for our tensor ``name``; none when their layout cannot hold it."""
        for ours, theirs in self.rules:
            end = "" if ours.endswith(".") or not ours else "$"
            match = re.match(re.escape(ours).replace(r"\*", r"(\d+)") + end, name)
            if match:
                numbers = match.groups()
                targets = (theirs,) if isinstance(theirs, str) else theirs
                return tuple(target.replace("*", "{}").format(*numbers) + name[match.end() :] for target in targets)
        return ()

    def below(self, prefix: str) -> Layout:
        """The same for our tensors as parts of a larger model."""
        return replace(self, rules=tuple((prefix + ours, theirs) for ours, theirs in self.rules))

    def leaves_out(self, key: str) -> bool:
        """Whether their tensor ``key`` is known and of no use here."""
        return any(re.search(pattern, key) for pattern in self.left_out)


_CACHES = r"^layers\.\d+\.attention\.kv_cache\.[kv]_cache$"
_DECODER: tuple[Rule, ...] = (
    ("decoder.uncond", "cls_embedding.uncond_embedding"),
    ("decoder.cap_proj.", "cls_embedding.cap_proj."),
    ("decoder.embedding.", "tok_embeddings."),
    ("decoder.blocks.*.qkv.", "layers.*.attention.wqkv."),
    ("decoder.blocks.*.out.", "layers.*.attention.wo."),
    ("decoder.blocks.*.gate_up.", ("layers.*.feed_forward.w1.", "layers.*.feed_forward.w3.")),
    ("decoder.blocks.*.down.", "layers.*.feed_forward.w2."),
    ("decoder.blocks.*.attention_norm.", "layers.*.attention_norm."),
    ("decoder.blocks.*.ffn_norm.", "layers.*.ffn_norm."),
    ("decoder.norm.", "norm."),
    ("decoder.head.", "output."),
)
_TOWER = "multimodal_encoder.vision_model.vision_tower.vision_model."
_ENCODER: tuple[Rule, ...] = (
    ("encoder.vision.clip.", _TOWER),
    ("encoder.connector.fc1.", "multimodal_encoder.language_projection.0."),
    ("encoder.connector.fc2.", "multimodal_encoder.language_projection.2."),
    ("encoder.text.", "multimodal_encoder.language_model."),
)

LLAMAGEN = Layout("LlamaGen", _DECODER, (_CACHES,))
MENTOR = Layout("MENTOR", _DECODER + _ENCODER, (_CACHES, "^" + re.escape(_TOWER) + r"embeddings\.position_ids$"))

T5 = Layout("T5", (("encoder.text.", ""),), (r"^decoder\.", r"^lm_head\."))
CLIP = Layout(
    "CLIP",
    (("encoder.vision.clip.", "vision_model."),),
    (r"^text_model\.", r"^logit_scale$", r"^(text|visual)_projection\.", r"\.position_ids$"),
)
CLIP_VISION = Layout("CLIP vision tower", (("encoder.vision.clip.", ""),))  # as transformers 5 saves a tower alone
PROJECTOR = Layout(
    "MLP projector",
    (("encoder.connector.fc1.", "model.mm_projector.0."), ("encoder.connector.fc2.", "model.mm_projector.2.")),
)
OURS = Layout("mentor", (("", ""),))


def _vq_half(half: str, resample: str) -> tuple[Rule, ...]:
    level, stage = f"{half}.levels.*", f"{half}.conv_blocks.*"
    units = [
        (f"{level}.blocks.*.", f"{stage}.res.*.", False),
        (f"{level}.attention.*.", f"{stage}.attn.*.", True),
        (f"{half}.middle.first.", f"{half}.mid.0.", False),
        (f"{half}.middle.attention.", f"{half}.mid.1.", True),
        (f"{half}.middle.second.", f"{half}.mid.2.", False),
    ]
    inner = {
        True: (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj_out")),
        False: (("shortcut", "nin_shortcut"),),
    }
    rules: list[Rule] = [(f"{level}.resample.", f"{stage}.{resample}.")]
    for ours, theirs, attention in units:
        rules += [(f"{ours}{new}.", f"{theirs}{old}.") for new, old in inner[attention]]
        rules.append((ours, theirs))
    return (*rules, *((f"{half}.{name}.", f"{half}.{name}.") for name in ("conv_in", "norm_out", "conv_out")))


VQ16 = Layout(
    "VQ-16",
    (
        *_vq_half("encoder", "downsample"),
        *_vq_half("decoder", "upsample"),
        ("to_code.", "quant_conv."),
        ("from_code.", "post_quant_conv."),
        ("codes.", "quantize.embedding."),
    ),
    (r"^quantize\.codebook_used$",),
)
