"""Memory of one GPU, by share.

States, in bytes per parameter and divided by the processes where a launch file shards them: hardware.py.

Activations are what autograd keeps of a micro-batch, with fused attention (no scores). Per row and layer, with ``a``
bytes of a matrix operand (4, bf16: 2), floats of four bytes for norms and residual streams whatever the precision, and
``w`` = 1 where the part (or its adapters) is trained, 0 where gradients only pass through:

- decoder (width D, SwiGLU F; rows: prefix slots T and image inputs S):
  8 D + w 8 D (two norms' inputs and outputs) + a D (5 qkv and rotated qk, 1 attention, w 3 operands)
  + a F (3 + w: gate, up, silu; their product); each image also holds keys and values of prefix and image side by side,
  a 2 D (T + S), and each prompt its masks as numbers, a (T^2 + S (T + S)).
- T5 (width C, attention A, gated GELU ff): 8 C + w 8 C + a 4 A + a ff (6 + w) + w a C (2, under autocast 5 casts); each
  prompt also holds the relative positions plus mask as numbers, a heads T^2: as much as all the rest at T = 512.
- CLIP (width W, hidden M), where trained: 8 W + a W (6, under autocast 8) + a 3 M.

Dropout keeps one byte per element. Checkpointed: the inputs of blocks, and everything of the one block that is being
computed again. Parts that no gradient reaches (a frozen tower) keep nothing.

Logits exist ``CHUNK_ROWS`` rows at a time: logits, log-softmax and their gradient, 12 bytes a code; where one chunk
holds a length bucket (a batch has at most two), its log-softmax stays until the backward pass.

Sampling: keys and values of the prompts (shared by a group) and images in all layers, a 2 D (K T + N L), and 24 bytes a
code for the step's logits, probabilities and cumulative sums in float64. The VQ tokenizer's encoder (supervised
targets) and decoder (rollouts) hold about three float32 maps of its first width at full resolution, per picture; they
take some pictures of a call at a time (vq.py, ``at_a_time``). Sampling, encoding targets and updating follow each
other, so a peak counts the largest of the three.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from mentor_base.config import MentorConfig
from mentor_base.guidance import CHUNK_ROWS
from mentor_base.vq import at_a_time
from mentor_rl.plan.compute import GUIDE_TOKENS
from mentor_rl.plan.hardware import ZERO3_LIVE, ZERO_BUFFER, Launch
from mentor_rl.plan.policy import Pass, PolicyFacts, gradient_reaches

TOKENIZER_MAPS = 3


@dataclass(frozen=True)
class States:
    """Bytes that stay for the whole run, on each GPU."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    reference: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Work:
    """Bytes that come and go; ``activations`` and ``logits`` of an update are there together."""

    activations: float
    logits: float
    kv_cache: float
    tokenizer: float

    @property
    def peak(self) -> float:
        return max(self.activations + self.logits, self.kv_cache, self.tokenizer)


def states_of(
    facts: PolicyFacts, launch: Launch, precision: str, gpus: int, with_reference: bool, captioner: int = 0
) -> States:
    """Weights, gradients, optimizer, communication buffers and the frozen reference under one launch file.

    The reference shares the policy's tokenizer, except under DeepSpeed and FSDP, which wrap it whole; with adapters it
    is the policy without them. ``captioner``: parameters of a projector stage's T5 decoder, which is whole everywhere,
    in the recipe's own precision.
    """
    each = launch.bytes_of(precision)
    trained, total = facts.trained, facts.total
    held = 1 / gpus if launch.shards_weights else 1.0
    split = 1 / gpus if launch.shards_gradients else 1.0
    copies = 0 if launch.shards_weights else each.copy * facts.crossed
    second = total - (facts.parameters["vq"] if launch.name == "ddp" else 0)
    return States(
        weights=each.weights * total * held + (2 if precision == "bf16" else 4) * captioner + copies,
        gradients=each.gradients * trained * split,
        optimizer=each.optimizer * trained * split,
        buffers=_buffers(facts, trained, launch, precision, gpus),
        reference=each.weights * second * held if with_reference and facts.train.lora is None else 0.0,
    )


def _buffers(facts: PolicyFacts, trained: int, launch: Launch, precision: str, gpus: int) -> float:
    each = launch.bytes_of(precision)
    if gpus == 1:
        return 0.0
    if launch.name == "ddp":
        return float(each.gradients * trained)
    gathered = 0
    if launch.name == "fsdp2":
        gathered = min(facts.total, 2 * facts.largest_block + facts.outside_blocks)
        return float(each.gathered * gathered)
    if launch.name == "zero3":
        gathered = min(facts.total, ZERO3_LIVE)
    return float(each.gathered * gathered + 2 * each.gradients * min(ZERO_BUFFER, trained))


def update_work(
    facts: PolicyFacts, call: Pass, precision: str, checkpointing: bool, with_encoder: bool
) -> tuple[float, float]:
    """(activations, logits) of one micro-batch, bytes."""
    config, train, operand = facts.config, facts.train, 2 if precision == "bf16" else 4
    total = _decoder(config, call, train.decoder, operand, checkpointing)
    if with_encoder and gradient_reaches(train, "text_encoder"):
        total += _text(config, call, train.text_encoder, operand, checkpointing)
    if with_encoder and gradient_reaches(train, "connector"):
        total += _connector(config, call, operand)
    if with_encoder and gradient_reaches(train, "vision"):
        total += _clip(config, call, operand, checkpointing)
    rows = call.images * config.image_tokens
    chunk = min(rows, CHUNK_ROWS)
    logits = config.vocab_size * (12 * chunk + 4 * min(CHUNK_ROWS, rows - chunk))
    return total, float(logits)


def captioning_work(
    facts: PolicyFacts, call: Pass, words: int, precision: str, checkpointing: bool
) -> tuple[float, float]:
    """(activations, logits) of a projector micro-batch. T5's decoder is not checkpointed; its logits are whole."""
    config, operand = facts.config, 2 if precision == "bf16" else 4
    text, inner, rows = config.t5_config, config.t5_config.num_heads * config.t5_config.d_kv, call.prompts * words
    row = 12 * text.d_model + operand * (6 * inner + 6 * text.d_ff)
    masks = text.num_heads * rows * words + rows * call.slots
    layer = rows * row + operand * (masks + 2 * inner * call.prompts * call.slots)
    total = text.num_decoder_layers * layer + _connector(config, call, operand)
    total += _text(config, call, False, operand, checkpointing)  # a projector stage trains the connector alone
    return total, float(rows * text.vocab_size * (operand + 12))


def sampling_cache(config: MentorConfig, call: Pass, precision: str) -> float:
    """Keys and values of a rollout, and the working set of a step's draw; bytes."""
    operand = 2 if precision == "bf16" else 4
    slots = call.prompts * call.slots + call.images * config.image_tokens
    cache = config.num_hidden_layers * 2 * config.hidden_size * operand * slots * call.halves
    return cache + 24 * call.images * config.vocab_size


def tokenizer_work(config: MentorConfig, images: float, decoding: bool) -> float:
    """The tokenizer's feature maps for so many pictures of a call; bytes."""
    vq = config.vq_config
    images = min(images, at_a_time(vq.image_size**2))
    channels = (vq.decoder_channels if decoding else None) or vq.channels
    return TOKENIZER_MAPS * 4.0 * channels * (vq.image_size // vq.stem_patch) ** 2 * images


def _decoder(config: MentorConfig, call: Pass, trained: bool, operand: int, checkpointing: bool) -> float:
    width, inner, inputs = config.hidden_size, config.intermediate_size, config.image_tokens - 1
    prompts, images = call.halves * call.prompts, call.halves * call.images
    rows, keys = prompts * call.slots + images * inputs, call.slots + inputs
    row = 8 * width * (1 + trained) + operand * width * (6 + 3 * trained) + operand * inner * (3 + trained)
    row += 2 * width if config.dropout else 0
    block = rows * row + operand * (2 * width * images * keys + prompts * (call.slots**2 + inputs * keys))
    ends = operand * prompts * call.slots * (config.text_width + 3 * width) + 12 * width * images * (inputs + 1)
    return ends + _layers(block, config.num_hidden_layers, 4 * width * rows, checkpointing)


def _text(config: MentorConfig, call: Pass, trained: bool, operand: int, checkpointing: bool) -> float:
    text, rows = config.t5_config, call.prompts * call.slots
    width, inner, hidden = text.d_model, text.num_heads * text.d_kv, text.d_ff
    casts = 2 if operand == 4 else 5
    row = 8 * width * (1 + trained) + operand * (4 * inner + (6 + trained) * hidden + trained * casts * width)
    row += 2 * width + hidden if text.dropout_rate else 0
    block = rows * row + operand * text.num_heads * call.prompts * call.slots**2
    return _layers(block, text.num_layers, 4 * width * rows, checkpointing)


def _connector(config: MentorConfig, call: Pass, operand: int) -> float:
    """Operands of the two layers; of the Q-Former twelve widths and three hidden widths per row and layer."""
    patches = call.pictures * config.patch_grid**2
    if config.connector == "mlp":
        vq, clip = config.vq_config, config.clip_config
        tower = clip.hidden_size if clip is not None else vq.channels * vq.multipliers[-1] + vq.codebook_width
        return float(operand * patches * (tower + 2 * (config.connector_width or config.text_width)))
    former = config.qformer_config
    rows = call.pictures * (config.queries + GUIDE_TOKENS)
    own = former.num_hidden_layers * rows * (12 * former.hidden_size + 3 * former.intermediate_size)
    return float(operand * (own + former.num_hidden_layers * patches * former.hidden_size))


def _clip(config: MentorConfig, call: Pass, operand: int, checkpointing: bool) -> float:
    clip = config.clip_config
    width, hidden, rows = clip.hidden_size, clip.intermediate_size, call.pictures * (config.patch_grid**2 + 1)
    row = 8 * width + operand * (4 * width + 3 * hidden + (2 if operand == 4 else 4) * width)
    return _layers(rows * row, clip.num_hidden_layers, 4 * width * rows, checkpointing)


def _layers(block: float, count: int, inputs: float, checkpointing: bool) -> float:
    return block + count * inputs if checkpointing else block * count
