"""What a reward is: the contract between reward authors and whoever trains or evaluates with rewards.

A reward scores N pictures and returns N raw scores in its own units; ``None`` means "could not score", with a reason.
Scale, weight, clip and what happens to missing scores are the recipe's business (RewardEntry), never the reward's.

Nothing here imports torch: a reward loads its weights in ``load``, not when it is imported or constructed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

Need = Literal["prompt", "reference", "subject"]


class RewardError(Exception):
    """A reward, a plugin or a reward entry that cannot be used as given; one line for the user."""


@dataclass(frozen=True)
class RewardSpec:
    """What the author declares about a reward.

    Attributes:
        name: unique, snake_case; the key under which scores are logged.
        version: changes whenever the same picture can get another score.
        needs: columns of the batch without which the reward cannot score.
        range: hard bounds of a score in native units; None where there is none.
        higher_is_better: False for distances.
        deterministic: same batch, same scores.
        batch_invariant: a picture's score does not depend on its neighbours.
        licence: of the weights (SPDX id where one exists).
        weights: file name -> sha256, empty when there are none.
    """

    name: str
    version: str
    needs: frozenset[Need] = frozenset()
    range: tuple[float | None, float | None] = (None, None)
    higher_is_better: bool = True
    deterministic: bool = True
    batch_invariant: bool = True
    licence: str = "unknown"
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardBatch:
    """N pictures and what is known of them, as columns of length N.

    Attributes:
        images: PIL RGB, decoded once for all rewards. Never change them.
        prompts: the text that each picture was asked for, without ``<image>`` marks.
        references: the reference pictures of each sample (empty tuple: none).
        subjects: the subject's name, None where the prompt has none.
        group_ids: samples of one prompt share an id.
        metadata: facts of the prompt, e.g. {"style": "noto", "background": "red"}.
        step: optimizer step, 0 outside of training.
    """

    images: Sequence[Image.Image]
    prompts: Sequence[str]
    references: Sequence[tuple[Image.Image, ...]]
    subjects: Sequence[str | None]
    group_ids: Sequence[int]
    metadata: Sequence[Mapping[str, Any]]
    step: int = 0

    def __post_init__(self) -> None:
        n = len(self.images)
        for column in ("prompts", "references", "subjects", "group_ids", "metadata"):
            found = len(getattr(self, column))
            if found != n:
                raise RewardError(f"RewardBatch.{column}: expected {n} entries, one per image, found {found}")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Sequence[int]) -> RewardBatch:
        """The sub-batch of these rows, in this order."""
        return RewardBatch(
            images=[self.images[i] for i in rows],
            prompts=[self.prompts[i] for i in rows],
            references=[self.references[i] for i in rows],
            subjects=[self.subjects[i] for i in rows],
            group_ids=[self.group_ids[i] for i in rows],
            metadata=[self.metadata[i] for i in rows],
            step=self.step,
        )


@dataclass(frozen=True)
class RewardOutput:
    """N raw scores; ``None`` where the reward could not score, with the reason in the same place."""

    scores: list[float | None]
    reasons: list[str | None] = field(default_factory=list)
    details: dict[str, list[Any]] = field(default_factory=dict)


@runtime_checkable
class Reward(Protocol):
    """A reward. Constructed with the recipe's ``options`` as keyword arguments; cheap until ``load``."""

    spec: RewardSpec

    def load(self, device: str, dtype: str) -> None:
        """Bring weights to a device ("cpu", "cuda:1"); dtype is a torch dtype name. May follow an unload."""

    def unload(self) -> None:
        """Free what ``load`` took."""

    def score(self, batch: RewardBatch) -> RewardOutput:
        """Score N pictures. Long-running or remote rewards may define ``async def ascore`` instead."""


class RewardEntry(BaseModel):
    """One reward of a composite, as the recipe states it.

    ``use`` is a registered name, or ``path/to/file.py:Class`` for a plugin file. The contribution of a sample is
    ``weight * normalised(clip(scale * raw))``; see composite.py for the aggregation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    use: str | None = Field(None, description="registered name or file.py:Class; default: the entry's own name")
    weight: float = 1.0
    scale: float = 1.0
    clip: tuple[float, float] | None = None
    on_missing: Literal["mask", "stop"] = "mask"
    role: Literal["train", "monitor"] = "train"
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: Annotated[int, Field(gt=0)] = 64
    options: dict[str, Any] = {}
