"""A RewardBatch and its scores as JSON: what a trainer and a reward server say to each other. No pickle, no code.

    POST /score  {"format": 1, "reward": "clip_image", "step": 7,
                  "pictures": ["<base64 PNG>", ...],
                  "samples": [{"id": "5f1c-0", "image": 0, "prompt": "a fox", "references": [1], "subject": "fox",
                               "group": 3, "metadata": {"style": "noto"}}, ...]}
    answer       {"format": 1, "reward": "clip_image", "fingerprint": "<of the spec>",
                  "results": [{"id": "5f1c-0", "score": 0.81, "reason": null}, ...], "details": {"key": [...]}}
    fault        {"error": "one line"}

Lossless: PNG keeps every pixel, JSON every float64. A picture that occurs several times (the reference of a group)
travels once per request: samples name pictures by their place in ``pictures``. Ids are new in every request and have to
come back in order, so no answer can be taken for another one.

What is read from the other side is checked before it is used: on the server ``WireFault`` carries the HTTP status and
names the field, on the trainer's side ``WireFault`` becomes missing scores (remote.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import ipaddress
import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mentor_rewards.contract import RewardBatch, RewardError, RewardOutput, RewardSpec, nearest, one_line
from mentor_rewards.pixels import picture_digest, rgb

FORMAT = 1
MODES = ("RGB", "RGBA", "L", "LA", "1")  # what a PNG keeps exactly and every reward knows how to read
MEGA = 2**20


class WireFault(Exception):
    """A message that cannot be used; one line, and the HTTP status that a server answers with."""

    def __init__(self, line: str, status: int = 400) -> None:
        super().__init__(line)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        body: bytes of one request.
        picture: pixels of one picture (a PNG of a few kilobytes can claim gigapixels).
        pixels: pixels of all pictures of one request.
    """

    body: int = 256 * MEGA
    picture: int = 16 * MEGA
    pixels: int = 256 * MEGA


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Sample(_Message):
    """One picture to score; ``image`` and ``references`` are places in ``ScoreRequest.pictures``."""

    id: str = Field(min_length=1, max_length=128)
    image: int = Field(ge=0)
    prompt: str
    references: list[int] = []
    subject: str | None = None
    group: int
    metadata: dict[str, Any] = {}


class ScoreRequest(_Message):
    """The body of POST /score."""

    format: Literal[1]
    reward: str
    step: int = 0
    pictures: list[str]
    samples: list[Sample]


class Result(_Message):
    """One score; None with a reason where there is none."""

    id: str
    score: float | None
    reason: str | None = None


class ScoreAnswer(_Message):
    """The answer of POST /score."""

    format: Literal[1]
    reward: str
    fingerprint: str
    results: list[Result]
    details: dict[str, list[Any]] = {}


class Listed(_Message):
    """A reward in GET /rewards; ``fingerprint`` changes when anything in its spec does."""

    spec: RewardSpec
    fingerprint: str


class Listing(_Message):
    """The answer of GET /rewards: what is served under which name, and how large a request may be."""

    format: Literal[1]
    rewards: dict[str, Listed]
    max_body: int


def is_loopback(host: str) -> bool:
    """Is this address of the own machine only?"""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(variable: str) -> str:
    """The token in an environment variable. Raises RewardError, without showing it, for one that cannot be sent."""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise RewardError(f"expected a token in the environment variable {variable}, found none")
    if not token.isascii() or not token.isprintable():
        raise RewardError(f"expected a token of plain ASCII characters in the environment variable {variable}")
    return token


# ---------------------------------------------------------------------------------------------------------- trainer


def encode_request(reward: str, batch: RewardBatch, step: int) -> tuple[bytes, list[str]]:
    """The body that asks ``reward`` for the scores of N pictures, and the N ids that the answer has to bring back.

    Raises:
        RewardError: metadata that JSON cannot hold exactly, or a picture that PNG cannot.
    """
    pictures = _PictureTable()
    run = uuid.uuid4().hex
    ids = [f"{run}-{row}" for row in range(len(batch))]
    samples = []
    for row in range(len(batch)):
        where = f"sample {row}"
        facts = dict(batch.metadata[row])
        _refuse_other_than_json(facts, f"{where}: metadata")
        samples.append(
            {
                "id": ids[row],
                "image": pictures.place(batch.images[row], where),
                "prompt": batch.prompts[row],
                "references": [pictures.place(image, where) for image in batch.references[row]],
                "subject": batch.subjects[row],
                "group": int(batch.group_ids[row]),
                "metadata": facts,
            }
        )
    body = {"format": FORMAT, "reward": reward, "step": step, "pictures": pictures.encoded, "samples": samples}
    return json.dumps(body, allow_nan=False).encode(), ids


def decode_answer(body: bytes, reward: str, ids: Sequence[str]) -> tuple[RewardOutput, str]:
    """The scores and the fingerprint of the reward that gave them.

    Raises:
        WireFault: anything but one result for each id, in order, each a finite number or None.
    """
    answer = _parsed(ScoreAnswer, body, "answer")
    if answer.reward != reward:
        raise WireFault(f"answer: expected scores of '{reward}', found '{answer.reward}'")
    found = [result.id for result in answer.results]
    if len(found) != len(ids):
        raise WireFault(f"answer: expected {len(ids)} results, found {len(found)}")
    if found != list(ids):
        row = next(row for row, (one, two) in enumerate(zip(ids, found, strict=True)) if one != two)
        raise WireFault(f"answer: results.{row}.id: expected {ids[row]}, found {found[row]}")
    for key, values in answer.details.items():
        if len(values) != len(ids):
            raise WireFault(f"answer: details.{key}: expected {len(ids)} entries, found {len(values)}")
    scores, reasons = [result.score for result in answer.results], [result.reason for result in answer.results]
    return RewardOutput(scores, reasons, answer.details), answer.fingerprint


def decode_listing(body: bytes) -> Listing:
    """What a server says it serves. Raises WireFault."""
    return _parsed(Listing, body, "listing")


# ----------------------------------------------------------------------------------------------------------- server


def decode_request(body: bytes) -> ScoreRequest:
    """The request in a body, its pictures still encoded. Raises WireFault (400) that names the field."""
    request = _parsed(ScoreRequest, body, "request")
    ids = [sample.id for sample in request.samples]
    if len(set(ids)) != len(ids):
        raise WireFault("request: samples: expected ids that differ, found one twice")
    for row, sample in enumerate(request.samples):
        try:
            _refuse_other_than_json(sample.metadata, f"request: samples.{row}.metadata")
        except RewardError as error:  # pydantic's parser takes NaN
            raise WireFault(str(error)) from error
        for place in (sample.image, *sample.references):
            if not 0 <= place < len(request.pictures):
                raise WireFault(
                    f"request: samples.{row}: no picture {place}, the request has {len(request.pictures)} pictures"
                )
    return request


def batch_of(request: ScoreRequest, limits: Limits) -> RewardBatch:
    """The batch that a request asks to score.

    Raises:
        WireFault: 400 for a picture that is no PNG, 413 for pictures above the limits; judged by their headers, before
            any pixel is decoded.
    """
    opened = [_open(text, f"request: pictures.{place}", limits) for place, text in enumerate(request.pictures)]
    total = sum(image.width * image.height for image in opened)
    if total > limits.pixels:
        raise WireFault(f"request: pictures: expected at most {limits.pixels} pixels in all, found {total}", 413)
    pictures = [_decoded(image, f"request: pictures.{place}") for place, image in enumerate(opened)]
    return RewardBatch(
        images=[pictures[sample.image] for sample in request.samples],
        prompts=[sample.prompt for sample in request.samples],
        references=[tuple(pictures[place] for place in sample.references) for sample in request.samples],
        subjects=[sample.subject for sample in request.samples],
        group_ids=[sample.group for sample in request.samples],
        metadata=[sample.metadata for sample in request.samples],
        step=request.step,
    )


def encode_answer(request: ScoreRequest, output: RewardOutput, fingerprint: str) -> bytes:
    """The answer to a request. What a reward reports as details has to be JSON but for NaN, which becomes null.

    Raises:
        RewardError: a detail that JSON cannot hold.
    """
    reasons = output.reasons or [None] * len(output.scores)
    results = [
        {"id": sample.id, "score": score, "reason": reason}
        for sample, score, reason in zip(request.samples, output.scores, reasons, strict=True)
    ]
    details = {key: [_plain(value, key) for value in values] for key, values in output.details.items()}
    answer = {"format": FORMAT, "reward": request.reward, "fingerprint": fingerprint}
    return json.dumps({**answer, "results": results, "details": details}, allow_nan=False).encode()


def listed(spec: RewardSpec) -> dict[str, Any]:
    """A spec as the listing has it."""
    fields = TypeAdapter(RewardSpec).dump_python(spec)
    fields = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in fields.items()}
    fields["weights"] = dict(sorted(spec.weights.items()))
    return {"spec": fields, "fingerprint": hashlib.sha256(json.dumps(fields).encode()).hexdigest()}


# --------------------------------------------------------------------------------------------------------- pictures


class _PictureTable:
    """Pictures of one request, each content once."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self._by_content: dict[bytes, int] = {}
        self._by_object: dict[int, int] = {}  # a group shares its reference objects: hash each of them once

    def place(self, image: Image.Image, where: str) -> int:
        if id(image) not in self._by_object:
            sendable = _sendable(image, where)
            content = picture_digest(sendable)
            if content not in self._by_content:
                self._by_content[content] = len(self.encoded)
                self.encoded.append(_png(sendable))
            self._by_object[id(image)] = self._by_content[content]
        return self._by_object[id(image)]


def _sendable(image: Image.Image, where: str) -> Image.Image:
    if 0 in image.size:
        raise RewardError(f"{where}: expected a picture with pixels, found {image.width} x {image.height}")
    if image.mode == "P":
        return rgb(image)  # as every reward reads a palette picture
    if image.mode not in MODES:
        raise RewardError(f"{where}: expected a picture of mode {', '.join(MODES)} or P, found {image.mode}")
    return image


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)  # pictures stay on the local network: time over size
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _open(text: str, where: str, limits: Limits) -> Image.Image:
    try:
        # Only PNG: no other decoder of PIL sees bytes from outside.
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
    except binascii.Error as error:
        raise WireFault(f"{where}: expected base64, found other text ({error})") from error
    except Image.DecompressionBombError as error:
        raise WireFault(f"{where}: expected at most {limits.picture} pixels, found far more", 413) from error
    except Exception as error:  # PIL raises many kinds for bytes that are no PNG
        raise WireFault(f"{where}: expected a PNG, found other bytes") from error
    if image.width * image.height > limits.picture:
        found = f"{image.width} x {image.height}"
        raise WireFault(f"{where}: expected at most {limits.picture} pixels, found {found}", 413)
    return image


def _decoded(image: Image.Image, where: str) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # as in _open: truncated data, bad checksums, oversized chunks
        raise WireFault(f"{where}: expected a whole PNG, found a broken one: {one_line(error)}") from error
    if image.mode not in MODES:
        raise WireFault(f"{where}: expected a PNG of mode {', '.join(MODES)}, found {image.mode}")
    return image


# ------------------------------------------------------------------------------------------------------------- JSON


M = TypeVar("M", bound=_Message)


def _parsed(model: type[M], body: bytes, what: str) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            inner: dict[str | int, type[_Message]] = {"samples": Sample, "results": Result}
            hint = nearest(str(problem["loc"][-1]), inner.get(problem["loc"][0], model).model_fields)
            raise WireFault(f"{what}: unknown key '{place}'; {hint}") from None
        raise WireFault(f"{what}: {place}: {problem['msg']}" if place else f"{what}: {problem['msg']}") from None


def _refuse_other_than_json(value: Any, where: str) -> None:
    """Refuse what would come out of JSON as something else: tuples, keys that are no text, NaN, objects."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise RewardError(f"{where}: expected text as key, found {key!r}")
            _refuse_other_than_json(item, f"{where}.{key}")
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _refuse_other_than_json(item, f"{where}.{place}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RewardError(f"{where}: expected a finite number, found {value}")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise RewardError(f"{where}: expected JSON (text, number, list, mapping), found {type(value).__name__}")


def _plain(value: Any, where: str) -> Any:
    """A detail as JSON values: numbers and arrays of numpy or torch become Python's, tuples lists, NaN null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RewardError(f"details.{where}: expected JSON, found {type(value).__name__}")
