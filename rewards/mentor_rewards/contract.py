"""What a reward is: the contract between reward authors and whoever trains or evaluates with rewards.

A reward scores N pictures and returns N raw scores in its own units; ``None`` means "could not score", with a reason.
Scale, weight, clip and what happens to missing scores are the recipe's business (RewardEntry), never the reward's.
A reward scores in ``score``, or, when it waits for something (a server, a judge), in ``async def ascore``.

Nothing here imports torch: a reward loads its weights in ``load``, not when it is imported or constructed.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, get_args, runtime_checkable

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Need = Literal["prompt", "reference", "subject", "text"]
Probe = Literal["blur", "noise", "prompt", "reference"]
NEEDS: tuple[Need, ...] = get_args(Need)
_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')


class RewardError(Exception):
    """A reward, a plugin or a reward entry that cannot be used as given; one line for the user."""


class RewardFailure(RewardError):
    """Too many scores of one reward are missing to go on (``failure_rate``, or ``on_missing: stop``)."""


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of an error line: the nearest valid name, or all of them when none is near."""
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(known)}" if known else "none is known"


def one_line(value: object) -> str:
    """A message of someone else's, as part of one of ours; the type's name for an error that says nothing."""
    return " ".join(str(value).split()) or type(value).__name__


def error_line(error: BaseException) -> str:
    """Type and message of someone else's exception, on one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault that pydantic found in what should be a ``model``, as the end of an error line."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'; {nearest(key, model.model_fields)}"
    found = f"{key}: {problem['msg']}, found {problem['input']!r}" if key else problem["msg"]
    return one_line(found.replace("Value error, ", "", 1))  # how pydantic begins what our own validators say


@dataclass(frozen=True)
class RewardSpec:
    """What the author declares about a reward.

    Attributes:
        name: unique, snake_case, with a dot where the usual name has one (hpsv2.1).
        version: changes whenever the same picture can get another score.
        needs: columns of the batch without which the reward does not apply. A sample that lacks one is left out
            (masked, not counted as a failure): so a composite can serve prompts with and without references.
            "text" is what the picture should have written in it, see ``RewardBatch.texts``.
        metadata: keys of ``RewardBatch.metadata`` that are needed in the same sense.
        range: hard bounds of a score in native units; None where there is none.
        higher_is_better: False for distances.
        deterministic: same batch, same scores.
        batch_invariant: a picture's score does not depend on its neighbours.
        network: scoring opens connections (a judge, a server). The contract checks block sockets without it.
        probes: what must not make a score better, on average over a batch: "blur" or "noise" over the picture, the
            "prompt" (with subject and facts) or the "reference" of another sample. With trained weights, that is:
            random ones like any prompt. Checked by testing.py; an optional method
            ``probes(self) -> [(better batch, worse batch), ...]`` adds cases of the author's own.
        licence: of the weights (SPDX id where one exists).
        weights: file name -> sha256, empty when there are none.
    """

    name: str
    version: str
    needs: frozenset[Need] = frozenset()
    metadata: frozenset[str] = frozenset()
    range: tuple[float | None, float | None] = (None, None)
    higher_is_better: bool = True
    deterministic: bool = True
    batch_invariant: bool = True
    network: bool = False
    probes: frozenset[Probe] = frozenset()
    licence: str = "unknown"
    weights: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for declared in ("needs", "metadata", "probes"):
            value = getattr(self, declared)
            if isinstance(value, str):  # it would be taken for the set of its letters
                raise RewardError(
                    f"reward '{self.name}': {declared}: expected a set such as {{'{value}'}}, found the text '{value}'"
                )
        for bound in self.range:
            if bound is not None and not math.isfinite(bound):
                raise RewardError(f"reward '{self.name}': range: expected None where there is no bound, found {bound}")
        for need in self.needs:
            if need not in NEEDS:
                raise RewardError(
                    f"reward '{self.name}': unknown need '{need}'; {nearest(need, NEEDS)} "
                    "(keys of the metadata go into RewardSpec.metadata)"
                )
        for probe in self.probes:
            if probe not in get_args(Probe):
                raise RewardError(f"reward '{self.name}': unknown probe '{probe}'; {nearest(probe, get_args(Probe))}")

    @property
    def columns(self) -> tuple[str, ...]:
        """All that a sample must have: the needs, then ``metadata.<key>``."""
        return (*sorted(self.needs), *(f"metadata.{key}" for key in sorted(self.metadata)))


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
        shared: work that rewards share within one scoring call (embeddings of references, prompts and pictures); lives
            as long as the batch and is handed on to its sub-batches. See embedding.py.
    """

    images: Sequence[Image.Image]
    prompts: Sequence[str]
    references: Sequence[tuple[Image.Image, ...]]
    subjects: Sequence[str | None]
    group_ids: Sequence[int]
    metadata: Sequence[Mapping[str, Any]]
    step: int = 0
    shared: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

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
            shared=self.shared,
        )

    def lacks(self, row: int, columns: Iterable[str]) -> list[str]:
        """Which of these columns (a Need, or "metadata.<key>") this sample has no value in."""
        return [column for column in columns if not self._has(row, column)]

    def texts(self, row: int) -> list[str]:
        """What should be written in the picture: ``metadata["text"]`` (a text or a list), else the prompt's quotes."""
        return asked_texts(self.prompts[row], self.metadata[row].get("text"))

    def _has(self, row: int, column: str) -> bool:
        if column == "prompt":
            return bool(self.prompts[row].strip())
        if column == "reference":
            return bool(self.references[row])
        if column == "subject":
            return self.subjects[row] is not None
        if column == "text":
            return bool(self.texts(row))
        return self.metadata[row].get(column.removeprefix("metadata.")) is not None


def asked_texts(prompt: str, stated: object = None) -> list[str]:
    """The texts that a picture should show: the stated ones, else those in double quotes; blank ones are none."""
    if stated is None:
        found = [straight or curly for straight, curly in _QUOTED.findall(prompt)]
    else:
        found = [str(text) for text in (stated if isinstance(stated, list | tuple) else [stated])]
    return [text for text in found if text.strip()]


@dataclass(frozen=True)
class RewardOutput:
    """N raw scores; ``None`` where the reward could not score, with the reason in the same place.

    ``reasons`` and every list in ``details`` (what the reward wants logged per picture) have N entries or none.
    """

    scores: list[float | None]
    reasons: list[str | None] = field(default_factory=list)
    details: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def missing(cls, count: int, reason: str) -> RewardOutput:
        """No score for any of ``count`` pictures, all for one reason."""
        return cls([None] * count, [reason] * count)


def misfit(output: object, count: int) -> str | None:
    """What keeps an answer from being ``count`` scores, with as many reasons and details or none; None if it fits."""
    if not isinstance(output, RewardOutput):
        return f"expected a RewardOutput, found {type(output).__name__}"
    reasons = {"reasons": output.reasons} if output.reasons else {}
    columns: dict[str, Sequence[Any]] = {"scores": output.scores, **reasons, **output.details}
    for name, values in columns.items():
        if not isinstance(values, Sized):
            return f"expected {name} as a list, one entry per picture, found {type(values).__name__}"
        if len(values) != count:
            return f"expected {count} {name}, one per picture, found {len(values)}"
    return None


@runtime_checkable
class Reward(Protocol):
    """A reward. Constructed with the recipe's ``options`` as keyword arguments; cheap until ``load``.

    A subclass inherits ``load`` and ``unload`` that do nothing; any class with these members will do.
    """

    spec: RewardSpec

    def load(self, device: str, dtype: str) -> None:
        """Bring weights to a device ("cpu", "cuda:1"); dtype is a torch dtype name. May follow an unload."""

    def unload(self) -> None:
        """Free what ``load`` took; harmless without it."""
        return

    def score(self, batch: RewardBatch) -> RewardOutput:
        """Score N pictures. The composite hands over only samples that have what ``spec`` declares as needed."""


@runtime_checkable
class Stateful(Protocol):
    """What a reward has beside, if its scores depend on what it scored before (running statistics, a curriculum).

    A run then saves its memory with each state, one per process, and resumes exactly. Caches that change no score need
    none of this. Memory starts empty in ``load``.
    """

    def save_state(self) -> Mapping[str, Any]:
        """All that is remembered, as JSON values (floats survive bit by bit)."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Remember exactly what ``save_state`` gave."""


@runtime_checkable
class Served(Protocol):
    """What a reward (or whatever else asks a judge) has beside, if somebody else runs the server that it asks."""

    def check_server(self) -> None:
        """Ask the server something cheap; called before ``load``, and before any work that needs scores.

        Raises:
            RewardError: it does not answer; says where, and how to start one.
        """


@runtime_checkable
class FromFiles(Protocol):
    """What a reward has beside, if its ``load`` reads files that may not be there."""

    def check_files(self) -> None:
        """Find what ``load`` will read, fetched where it is a hub's, but read no weights; called as check_server is.

        Raises:
            RewardError: something is missing; says what was expected where.
        """


@runtime_checkable
class AsyncReward(Protocol):
    """A reward that waits, e.g. for a server: as Reward, with ``ascore`` in the place of ``score``.

    The composite awaits all of them at the same time, in one event loop that lives from ``load`` to ``unload``.
    """

    spec: RewardSpec

    def load(self, device: str, dtype: str) -> None:
        """As in Reward."""
        return

    def unload(self) -> None:
        """As in Reward."""
        return

    async def ascore(self, batch: RewardBatch) -> RewardOutput:
        """Score N pictures; cancelled after ``RewardEntry.timeout`` seconds."""


AnyReward = Reward | AsyncReward


class RewardEntry(BaseModel):
    """One reward of a composite, as the recipe states it.

    ``use`` is a registered name, ``path/to/file.py:Class`` for a plugin file, or ``package.module:Class``. The
    contribution of a sample is ``weight * normalised(clip(scale * raw))``; see aggregate.py.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    use: str | None = Field(None, description="registered name or file.py:Class; default: the entry's own name")
    weight: float = 1.0
    scale: float = 1.0
    clip: tuple[float, float] | None = None
    spread_floor: Annotated[float, Field(ge=0)] = Field(
        0.0, description="normalize_then_sum divides by no less than this spread within a group, in scaled units"
    )
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="tasks whose samples it scores (metadata['task']); default: all"
    )
    on_missing: Literal["mask", "stop"] = "mask"
    role: Literal["train", "monitor"] = "train"
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: Annotated[int, Field(gt=0, description="pictures per call of the reward")] = 64
    timeout: Annotated[float, Field(gt=0)] | None = Field(None, description="seconds per call; see reward_schedule.py")
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _options_are_not_called_params(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "params" in data:
            raise ValueError("unknown key 'params'; the constructor's arguments stand under 'options'")
        return data

    @model_validator(mode="after")
    def _clip_is_an_interval(self) -> RewardEntry:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip: expected [low, high] with low < high, found {list(self.clip)}")
        return self
