"""What steps of all kinds are made of: the machine, the prompts of a mixture, and what is counted of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mentor_base.config import MentorConfig
from mentor_rl.plan.hardware import Gpu, gpu_of
from mentor_rl.plan.memory import Work
from mentor_rl.plan.policy import Pass

# Reference pictures of a task's prompt; None: as many as the context holds.
PICTURES: dict[str, int | None] = {
    "t2i": 0,
    "reconstruction": 1,
    "segmentation": 1,
    "recovery": 1,
    "subject": 1,
    "editing": 1,
    "multi_image": None,
    "in_context": None,
}


@dataclass(frozen=True)
class Machine:
    """Attributes: utilisation: share of the peak that training reaches. text_tokens: of a prompt, without pictures."""

    gpu: str
    gpus: int
    utilisation: float
    text_tokens: int

    @property
    def card(self) -> Gpu:
        return gpu_of(self.gpu)

    def seconds(self, flops: float, precision: str) -> float:
        """Time of so many FLOPs over all GPUs."""
        peak = self.card.bf16 if precision == "bf16" else self.card.float32
        return flops / (1e12 * peak * self.utilisation * self.gpus)


@dataclass(frozen=True)
class PromptShape:
    """Prompts of one task: their share of the mixture, prefix slots, pictures."""

    share: float
    slots: int
    pictures: int

    def call(self, prompts: float, images: float, halves: int = 1) -> Pass:
        """This task's share of a call with so many prompts and images of all tasks."""
        prompts, images = prompts * self.share, images * self.share
        return Pass(prompts, self.slots, prompts * self.pictures, images, halves)


@dataclass(frozen=True)
class Step:
    """One optimizer step over all GPUs.

    Attributes:
        micro_batch: examples or pictures of an update pass on one GPU.
        image_tokens, prefix_slots: of its batch.
        flops, seconds: by phase.
        work: memory on one GPU, without and with checkpointing.
    """

    micro_batch: int
    image_tokens: int
    prefix_slots: int
    work: dict[bool, Work]
    flops: dict[str, float]
    seconds: dict[str, float]


def prompt_shapes(weights: Mapping[Any, float], config: MentorConfig, text_tokens: int) -> list[PromptShape]:
    """Prompts of a mixture; those that would not fit the context fill it."""
    total, most = sum(weights.values()), max(1, (config.context_length - text_tokens) // config.picture_slots)
    shapes = []
    for task, weight in weights.items():
        pictures = PICTURES[task]
        pictures = most if pictures is None else pictures
        slots = min(config.context_length, text_tokens + pictures * config.picture_slots)
        shapes.append(PromptShape(weight / total, slots, pictures))
    return shapes


def longest(shapes: list[PromptShape]) -> PromptShape:
    """The shape that memory is counted with: a batch may hold nothing but the longest prompts."""
    return PromptShape(1.0, max(shape.slots for shape in shapes), max(shape.pictures for shape in shapes))


def add(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Add FLOPs phase by phase."""
    for phase, number in more.items():
        total[phase] = total.get(phase, 0.0) + number


def mean_slots(shapes: list[PromptShape], prompts: int) -> int:
    """Prefix slots of so many prompts of a mixture."""
    return round(prompts * sum(shape.share * shape.slots for shape in shapes))
