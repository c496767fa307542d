"""FLOPs of a policy's passes; a multiplication and an addition are two.

Per row of a layer: 2 x the weights it meets, and 4 x width x keys for its attention (scores and mixing; masks are
dense, so all keys count). Rows are prefix slots and image inputs (decoder), slots (T5), patches and the class token
(CLIP). The head is one product per image token, guided or not.

Backward: for products with weights one forward's worth for the inputs' gradients, and one more where the weights are
trained; for attention two and a half (fused kernels compute the scores again). Parts that no gradient reaches run
forward only. Checkpointing adds one forward of the blocks that gradients reach, logits of more than one chunk
(``CHUNK_ROWS``) one of the head. Norms, activations, embeddings and softmaxes are left out, and adapters' own products:
they cost time, which ``--utilisation`` stands for, but few FLOPs.
"""

from __future__ import annotations

from typing import NamedTuple

from mentor_base.config import MentorConfig
from mentor_base.guidance import CHUNK_ROWS
from mentor_rl.plan.policy import Pass, PolicyFacts, gradient_reaches

ATTENTION_BACKWARD = 2.5
GUIDE_TOKENS = 8  # of the query connector's text per picture


class Cost(NamedTuple):
    """Forward FLOPs: of products with weights, of attention, and how much of both is in checkpointed blocks."""

    linear: float
    attention: float = 0.0
    blocks: float = 0.0

    @property
    def forward(self) -> float:
        return self.linear + self.attention

    def backward(self, trained: bool) -> float:
        """Where a gradient reaches the part."""
        return self.linear * (2 if trained else 1) + self.attention * ATTENTION_BACKWARD


def part_costs(facts: PolicyFacts, call: Pass) -> dict[str, Cost]:
    """Every part of a teacher-forced call: encoder, decoder and head (the latter two as "decoder", "head")."""
    config = facts.config
    return {
        **encoder_costs(facts, call),
        "decoder": decoder_cost(config, call, cached=False),
        "head": Cost(2 * config.hidden_size * config.vocab_size * call.images * config.image_tokens),
    }


def encoder_costs(facts: PolicyFacts, call: Pass) -> dict[str, Cost]:
    """Vision tower, connector, text encoder."""
    config = facts.config
    tower = Cost(facts.trunk_flops * call.pictures) if config.vision_tower == "tokenizer" else clip_cost(config, call)
    return {"vision": tower, "connector": connector_cost(facts, call), "text_encoder": text_cost(config, call)}


def clip_cost(config: MentorConfig, call: Pass) -> Cost:
    clip = config.clip_config
    patches, width = config.patch_grid**2, clip.hidden_size
    rows = call.pictures * (patches + 1)
    layer = 2 * (4 * width**2 + 2 * width * clip.intermediate_size)
    attention = clip.num_hidden_layers * rows * 4 * width * (patches + 1)
    blocks = clip.num_hidden_layers * rows * layer
    stem = call.pictures * patches * 2 * 3 * clip.patch_size**2 * width
    return Cost(blocks + stem, attention, blocks + attention)


def connector_cost(facts: PolicyFacts, call: Pass) -> Cost:
    """MLP: its weights once per patch. Queries: Q-Former, whose queries also read the patches in every n-th layer."""
    config = facts.config
    patches = call.pictures * config.patch_grid**2
    if config.connector == "mlp":
        return Cost(2 * facts.parameters["connector"] * patches)
    former = config.qformer_config
    width, rows = former.hidden_size, config.queries + GUIDE_TOKENS
    layers, crossed = former.num_hidden_layers, -(-former.num_hidden_layers // former.cross_attention_frequency)
    own = layers * rows * 2 * (4 * width**2 + 2 * width * former.intermediate_size)
    across = crossed * (config.queries * 4 * width**2 + config.patch_grid**2 * 4 * width * former.encoder_hidden_size)
    project = config.queries * 2 * width * config.text_width
    keys = layers * rows * rows + crossed * config.queries * config.patch_grid**2
    return Cost(call.pictures * (own + across + project), call.pictures * 4 * width * keys)


def text_cost(config: MentorConfig, call: Pass) -> Cost:
    text = config.t5_config
    inner, rows = text.num_heads * text.d_kv, call.prompts * call.slots
    matrices = 4 * text.d_model * inner + (3 if text.is_gated_act else 2) * text.d_model * text.d_ff
    linear = text.num_layers * rows * 2 * matrices
    attention = text.num_layers * rows * 4 * inner * call.slots
    return Cost(linear, attention, linear + attention)


def decoder_cost(config: MentorConfig, call: Pass, cached: bool) -> Cost:
    """The caption projection and all blocks, on prefix and image rows; ``cached``: sampling, whose keys grow by one."""
    width, layers, inputs = config.hidden_size, config.num_hidden_layers, config.image_tokens - 1
    prefix_rows, image_rows = call.halves * call.prompts * call.slots, call.halves * call.images * inputs
    last_rows = call.halves * call.prompts + image_rows  # of the last block only these go on beyond keys and values
    into, onward = 2 * 3 * width**2, 2 * (width**2 + 3 * width * config.intermediate_size)
    blocks = layers * (prefix_rows + image_rows) * into
    blocks += ((layers - 1) * (prefix_rows + image_rows) + last_rows) * onward
    image_keys = call.slots + (inputs / 2 if cached else inputs)
    seen = layers * image_rows * image_keys + ((layers - 1) * prefix_rows + call.halves * call.prompts) * call.slots
    attention = 4 * width * seen
    caption = prefix_rows * 2 * (config.text_width * width + width**2)
    return Cost(blocks + caption + _tables(config), attention, blocks + attention)


def update_flops(
    facts: PolicyFacts, call: Pass, checkpointing: bool, with_encoder: bool, micro: float | None = None
) -> dict[str, float]:
    """Forward, backward and recomputation of a training pass, or of all passes of a step.

    Args:
        with_encoder: without it the prefixes are at hand already.
        micro: images of one pass, which decide whether its logits come in chunks; default: all of ``call``.
    """
    parts = part_costs(facts, call)
    if not with_encoder:
        parts = {name: cost for name, cost in parts.items() if name in ("decoder", "head")}
    backward = recomputed = 0.0
    for name, cost in parts.items():
        owner = "decoder" if name == "head" else name
        if gradient_reaches(facts.train, owner):
            backward += cost.backward(owner in facts.train.parts and facts.train.lora is None)
            recomputed += cost.blocks if checkpointing else 0.0
    if (call.images if micro is None else micro) * facts.config.image_tokens > CHUNK_ROWS:
        recomputed += parts["head"].forward
    return {"forward": sum(cost.forward for cost in parts.values()), "backward": backward, "recompute": recomputed}


def captioning_flops(facts: PolicyFacts, call: Pass, words: int, checkpointing: bool) -> dict[str, float]:
    """A pass of the projector stage: encoder, then a frozen T5 decoder over ``words`` caption tokens per prompt."""
    parts, captioner = encoder_costs(facts, call), captioner_cost(facts.config, call, words)
    reached = {name: cost for name, cost in parts.items() if gradient_reaches(facts.train, name)}
    return {
        "forward": sum(cost.forward for cost in parts.values()) + captioner.forward,
        "backward": captioner.backward(trained=False)
        + sum(cost.backward(name in facts.train.parts) for name, cost in reached.items()),
        "recompute": sum(cost.blocks for cost in reached.values()) if checkpointing else 0.0,
    }


def captioner_cost(config: MentorConfig, call: Pass, words: int) -> Cost:
    """T5's decoder and its head: every layer also reads the prefix."""
    text = config.t5_config
    inner, rows, slots = text.num_heads * text.d_kv, call.prompts * words, call.prompts * call.slots
    per_row = 6 * text.d_model * inner + (3 if text.is_gated_act else 2) * text.d_model * text.d_ff
    linear = text.num_decoder_layers * 2 * (rows * per_row + slots * 2 * text.d_model * inner)
    attention = text.num_decoder_layers * rows * 4 * inner * (words + call.slots)
    return Cost(linear + rows * 2 * text.d_model * text.vocab_size, attention)


def scoring_flops(facts: PolicyFacts, call: Pass, with_encoder: bool) -> float:
    """A forward pass alone: the reference, or log-probs before the update."""
    parts = part_costs(facts, call)
    return sum(cost.forward for name, cost in parts.items() if with_encoder or name in ("decoder", "head"))


def rollout_flops(facts: PolicyFacts, call: Pass) -> float:
    """Encode the prompts once, prefill, and draw all images token by token. The pictures' pixels are not in it."""
    head = part_costs(facts, call)["head"]
    return encoder_flops(facts, call) + decoder_cost(facts.config, call, cached=True).forward + head.forward


def encoder_flops(facts: PolicyFacts, call: Pass) -> float:
    """Prompts to prefixes, forward."""
    return sum(cost.forward for cost in encoder_costs(facts, call).values())


def _tables(config: MentorConfig) -> float:
    """Making plain token tables from their parts, once per call."""
    if not config.factorised_codebook:
        return 0.0
    return 4.0 * config.vocab_size * config.vq_config.codebook_width * config.hidden_size
