"""What plans know about machines: cards by their vendors' figures, and how each launch file spreads a training.

Bytes per parameter (weights, gradients and optimizer of trained parts; frozen parts hold weights alone):

    precision  launch        weights  frozen  copy  gradients  buckets  optimizer
    float32    all           4        4       0     4          4 (DDP)  8  (Adam's m and v)
    bf16       ddp           4        4       2     4          4        8
    bf16       zero2, zero3  2        2       0     2          -        12 (m, v and the float32 master weights)
    bf16       fsdp2         4        4       -     4          -        8

- ddp: autocast. Parameters stay float32 and are their own masters; the bf16 copies that matrix products read live from
  forward to backward, in all parts that gradients reach. The reducer's buckets are a second copy of the gradients, held
  from two processes on.
- zero2 shards gradients and optimizer over all processes, zero3 the weights too; both have two flat buffers of
  ZERO_BUFFER elements (DeepSpeed's ``reduce_bucket_size``, doubled by ``overlap_comm``); zero3 keeps up to
  ZERO3_LIVE parameters gathered (``stage3_max_live_parameters``).
- fsdp2 shards all three in float32; gathered in the precision of the run are two blocks and what stands outside of all
  blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from mentor_base.errors import UserError, nearest

GIB = 2**30
ZERO_BUFFER = 5 * 10**8
ZERO3_LIVE = 10**9
HEADROOM = 0.1  # of a card's memory: CUDA context, libraries' workspaces, fragments
CARDS = (24, 40, 80)  # GB, as cards are sold; each has about so many GiB


@dataclass(frozen=True)
class Gpu:
    """Attributes: memory: GB. bf16, float32: dense peak, TFLOP/s (float32: without tensor cores). bandwidth: GB/s."""

    memory: int
    bf16: float
    float32: float
    bandwidth: float


# Public data sheets; figures "with sparsity" halved, bf16 with float32 accumulation.
GPUS = {
    "a10": Gpu(24, 125.0, 31.2, 600),
    "a100-40g": Gpu(40, 312.0, 19.5, 1555),
    "a100-80g": Gpu(80, 312.0, 19.5, 2039),
    "a6000": Gpu(48, 154.8, 38.7, 768),
    "h100": Gpu(80, 989.0, 67.0, 3350),
    "h200": Gpu(141, 989.0, 67.0, 4800),
    "l4": Gpu(24, 121.0, 30.3, 300),
    "l40s": Gpu(48, 362.0, 91.6, 864),
    "rtx3090": Gpu(24, 71.0, 35.6, 936),
    "rtx4090": Gpu(24, 165.2, 82.6, 1008),
}


@dataclass(frozen=True)
class Launch:
    """A launch file and what it shards. ``half``: the bytes of its bf16 mode in the table above."""

    name: str
    shards_weights: bool
    shards_gradients: bool
    half: Bytes

    @property
    def file(self) -> str:
        return f"recipes/launch/{self.name}.yaml"

    def bytes_of(self, precision: str) -> Bytes:
        return self.half if precision == "bf16" else FLOAT32


@dataclass(frozen=True)
class Bytes:
    """Per parameter; ``copy``: of weights that autocast reads, ``gathered``: of weights another process holds."""

    weights: int
    copy: int
    gradients: int
    optimizer: int
    gathered: int


FLOAT32 = Bytes(weights=4, copy=0, gradients=4, optimizer=8, gathered=4)
AUTOCAST = Bytes(weights=4, copy=2, gradients=4, optimizer=8, gathered=2)
DEEPSPEED = Bytes(weights=2, copy=0, gradients=2, optimizer=12, gathered=2)

# In the order of preference: the least communication first.
LAUNCHES = (
    Launch("ddp", shards_weights=False, shards_gradients=False, half=AUTOCAST),
    Launch("zero2", shards_weights=False, shards_gradients=True, half=DEEPSPEED),
    Launch("fsdp2", shards_weights=True, shards_gradients=True, half=AUTOCAST),
    Launch("zero3", shards_weights=True, shards_gradients=True, half=DEEPSPEED),
)


def gpu_of(name: str) -> Gpu:
    """A card by its name.

    Raises:
        UserError: none of that name; gives the nearest.
    """
    if name not in GPUS:
        raise UserError(f"--gpu: unknown card '{name}'; {nearest(name, GPUS)}")
    return GPUS[name]


def fits(gib: float, card: float) -> bool:
    """Whether so much memory leaves HEADROOM on a card of ``card`` GB."""
    return gib <= (1 - HEADROOM) * card
