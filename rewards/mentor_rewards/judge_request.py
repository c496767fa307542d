"""One question to a judge, its answer, and what a judge is: an OpenAI-compatible server or a model in this process."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from PIL import Image

from mentor_rewards.judge_prompts import Message, Question
from mentor_rewards.pixels import rgb

RE_ASK_TEMPERATURE = 0.3  # a greedy judge would repeat a rejected answer word for word, whatever the seed


class Picture:
    """A picture as judges take it, RGB; encoded and hashed once, however many questions show it."""

    def __init__(self, image: Image.Image) -> None:
        self.image = rgb(image)

    @cached_property
    def url(self) -> str:
        """A data URL with the picture as PNG: no loss, unlike JPEG, whose marks a judge would grade too."""
        packed = io.BytesIO()
        self.image.save(packed, format="PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"

    @cached_property
    def sha256(self) -> str:
        """Of size and pixels."""
        return hashlib.sha256(repr(self.image.size).encode() + self.image.tobytes()).hexdigest()


@dataclass(frozen=True)
class JudgeSampling:
    """How a judge decodes; temperature 0 is greedy."""

    temperature: float
    max_tokens: int
    seed: int

    def again(self, attempt: int) -> JudgeSampling:
        """For the re-ask ``attempt`` (0: as it is): another seed, twice the room each time, never greedy."""
        if attempt == 0:
            return self
        return JudgeSampling(
            max(self.temperature, RE_ASK_TEMPERATURE), self.max_tokens * 2**attempt, self.seed + attempt
        )


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge is asked about one generated picture. Fields: see JudgeTemplate.messages."""

    template: Question
    prompt: str
    picture: Picture
    references: tuple[Picture, ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, in the order of the messages."""
        return (*(self.references if self.template.with_reference else ()), self.picture)

    def messages(self, urls: Sequence[str]) -> list[Message]:
        """Chat messages with these URLs in the place of ``pictures``."""
        return self.template.messages(self.prompt, urls[-1], urls[:-1])


@dataclass(frozen=True)
class Answer:
    """What came back: the raw text, and why the judge stopped ("stop", "length")."""

    text: str
    finish_reason: str | None


class NoAnswer(Exception):
    """A judge that could not be reached or did not answer, with the reason; the picture stays without a score."""


class JudgeBackend(Protocol):
    """Whatever answers questions.

    Attributes:
        model: its name for people.
        identity: its name in cache keys: the model, and what else is known that changes its answers.
    """

    model: str
    identity: str

    async def complete(self, request: JudgeRequest, sampling: JudgeSampling) -> Answer:
        """One answer.

        Raises:
            NoAnswer: there is none, after all retries.
            RewardError: there never will be one: a fault of the configuration.
        """

    def close(self) -> None:
        """Let go of connections or weights."""
