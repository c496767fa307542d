"""Decode speed: our sampler and the reference's way of working, in turns on the same weights.

Both draw greedily. First both draw ``compared`` tokens from the same prefixes, which warms them up and is checked for
equality; then each repeat times a prefill and ``timed`` steps of either. Where these are fewer than the picture's, they
stand in the middles of four equal parts of it: our step grows with the place, linearly, so that a part's middle is its
mean; the reference's costs the same everywhere, since it always attends to the full length.

Shapes: K prompts, G pictures a prompt (N = K * G), L tokens.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch

from mentor_base.checkpoint import DTYPES
from mentor_base.config import MentorConfig
from mentor_base.decode_graph import DecodeEngine
from mentor_base.errors import UserError
from mentor_base.generate import Decoding, generate
from mentor_base.prefix import Prefix
from mentor_base.settings import Sampling
from mentor_rl.bench.bandwidth import RolloutShape, rollout_bytes
from mentor_rl.bench.decoder_policy import DecoderPolicy, plain_config, random_policy, random_prefix
from mentor_rl.bench.machine import PeakMemory, Spread, copy_bandwidth, now
from mentor_rl.bench.reference_sampler import ReferenceSampler, reference_draw

PARTS = 4  # of a picture, each timed in its middle


@dataclass(frozen=True)
class RolloutSettings:
    """Attributes: batch: pictures, all prompts together. timed, compared: tokens; None: all of them."""

    size: str
    batch: int
    prompts: int
    guidance: float
    tokens: int
    prefix: int
    dtype: str
    device: str = "cpu"
    engine: str = "loop"
    against: str | None = None
    repeats: int = 3
    timed: int | None = None
    compared: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises: UserError, for what does not add up."""
        if self.batch % self.prompts:
            raise UserError(f"--batch: expected a multiple of --prompts {self.prompts}, found {self.batch}")
        if self.engine != "loop" and self.timed is not None:
            raise UserError(f"--timed: expected none with --engine {self.engine}, which runs whole pictures")

    @property
    def group(self) -> int:
        return self.batch // self.prompts

    @property
    def sampling(self) -> Sampling:
        return Sampling(guidance_scale=self.guidance, top_k=1)


class Part(NamedTuple):
    """``timed`` steps from ``start`` on, standing for ``span`` of them."""

    start: int
    timed: int
    span: int


def parts_of(steps: int, timed: int | None) -> list[Part]:
    """Which of ``steps`` steps are timed, and how many each stands for."""
    if timed is None or timed >= steps:
        return [Part(0, steps, steps)]
    bounds = [index * steps // PARTS for index in range(PARTS + 1)]
    spans = [end - start for start, end in pairwise(bounds)]
    counts = [min(span, max(1, timed // PARTS)) for span in spans]
    return [
        Part(start + (span - count) // 2, count, span)
        for start, span, count in zip(bounds, spans, counts, strict=False)
    ]


class Way(Protocol):
    """One way of sampling, step by step."""

    def prefill(self) -> None:
        """Read the prefixes and choose token 0."""

    def step(self, place: int) -> None:
        """Read the token at ``place``, choose the next."""


class Ours:
    def __init__(self, policy: DecoderPolicy, prefix: Prefix, settings: RolloutSettings) -> None:
        self.policy, self.prefix, self.settings = policy, prefix, settings
        shape = (settings.batch, policy.config.image_tokens)
        self.uniforms_NL = torch.zeros(shape, dtype=torch.float64, device=prefix.mask_KT.device)

    def prefill(self) -> None:
        settings = self.settings
        self.decoding = Decoding(
            self.policy, self.prefix, settings.group, settings.sampling, uniforms_NL=self.uniforms_NL
        )
        self.decoding.cache.reserve()  # counted; places that a timing leaves out are zero
        self.tokens_N1 = self.decoding.draw(0)

    def step(self, place: int) -> None:
        self.decoding.cache.position = place
        self.decoding.hidden = self.decoding.feed(self.tokens_N1)
        self.tokens_N1 = self.decoding.draw(place + 1)


class Reference:
    def __init__(self, policy: DecoderPolicy, prefix: Prefix, settings: RolloutSettings) -> None:
        self.policy, self.guidance = policy, settings.guidance
        rows = torch.arange(settings.prompts, device=prefix.mask_KT.device)
        self.prefix_N = prefix.rows(rows.repeat_interleave(settings.group))

    def prefill(self) -> None:
        self.sampler = ReferenceSampler(self.policy.decoder, self.guidance)
        self.tokens_N1 = self.sampler.prefill(self.prefix_N)

    def step(self, place: int) -> None:
        self.tokens_N1 = self.sampler.step(self.tokens_N1, place)


class Timing(NamedTuple):
    """Seconds of the prefill, and of all steps as the timed ones tell."""

    prefill: float
    steps: float

    @property
    def seconds(self) -> float:
        return self.prefill + self.steps


def time_way(way: Way, parts: list[Part], device: torch.device) -> Timing:
    began = now(device)
    way.prefill()
    prefill, steps = now(device) - began, 0.0
    for part in parts:
        began = now(device)
        for place in range(part.start, part.start + part.timed):
            way.step(place)
        steps += (now(device) - began) / part.timed * part.span
    return Timing(prefill, steps)


@torch.no_grad()
def bench_rollout(settings: RolloutSettings) -> dict[str, Any]:
    """The numbers of a record."""
    settings.check()
    device, dtype = torch.device(settings.device), DTYPES[settings.dtype]
    config = plain_config(settings.size, settings.tokens, settings.prefix)
    policy = random_policy(config, device, dtype, settings.seed)
    prefix = random_prefix(config, settings.prompts, settings.prefix, device, dtype, settings.seed + 1)
    numbers: dict[str, Any] = {"timed": min(settings.timed or settings.tokens, settings.tokens)}
    ours, engine = Ours(policy, prefix, settings), _engine(settings)
    peak = PeakMemory(device)
    compared = min(settings.compared or settings.tokens, settings.tokens)
    tokens_NC = _first_tokens(ours, compared, engine)
    numbers["ours"] = {"peak_bytes": peak.grown()}
    reference = None
    if settings.against is not None:
        _free(ours)
        reference, peak = Reference(policy, prefix, settings), PeakMemory(device)
        sampler = ReferenceSampler(policy.decoder, settings.guidance)
        expected_NC = reference_draw(sampler, reference.prefix_N, compared)
        numbers["greedy"] = compare_greedy(tokens_NC, expected_NC, sampler.probabilities)
        numbers["reference"] = {"peak_bytes": peak.grown()}
        del sampler
    _time(numbers, settings, ours, reference, engine, device)
    _add_bandwidth(numbers, config, settings, device, policy)
    return numbers


def compare_greedy(
    found_NC: torch.Tensor, expected_NC: torch.Tensor, probabilities: list[torch.Tensor]
) -> dict[str, Any]:
    """How many pictures have equal ids, and how close the choice was where the others part.

    ``largest_margin``: over pictures that differ, the largest log-prob by which the reference preferred its own token
    to ours at the first place where they differ, from its ``probabilities`` (C times [N, V]). Rounding alone parts them
    at margins near 0 only.
    """
    differ_NC = found_NC != expected_NC
    rows = differ_NC.any(1).nonzero()[:, 0].tolist()
    margins = []
    for row in rows:
        place = int(differ_NC[row].nonzero()[0])
        logp_V = probabilities[place][row].double().log()
        margins.append(float(logp_V[expected_NC[row, place]] - logp_V[found_NC[row, place]]))
    count, tokens = expected_NC.shape
    margin = max(margins, default=None)
    return {"pictures": count, "tokens": tokens, "pictures_equal": count - len(rows), "largest_margin": margin}


def _engine(settings: RolloutSettings) -> DecodeEngine | None:
    if settings.engine == "loop":
        return None
    return DecodeEngine("graph" if settings.engine == "graph" else "compile")


def _first_tokens(ours: Ours, count: int, engine: DecodeEngine | None) -> torch.Tensor:
    if engine is not None:
        return _whole(ours, engine)[:, :count]
    ours.prefill()
    for place in range(count - 1):
        ours.step(place)
    return ours.decoding.tokens_NL[:, :count]


def _whole(ours: Ours, engine: DecodeEngine) -> torch.Tensor:
    settings = ours.settings
    return generate(
        ours.policy, ours.prefix, settings.group, settings.sampling, uniforms_NL=ours.uniforms_NL, engine=engine
    ).tokens_NL


def _time(
    numbers: dict[str, Any],
    settings: RolloutSettings,
    ours: Ours,
    reference: Reference | None,
    engine: DecodeEngine | None,
    device: torch.device,
) -> None:
    """Times of both, in turns, and their ratio."""
    parts = parts_of(settings.tokens - 1, settings.timed)
    own: list[Timing] = []
    others: list[Timing] = []
    for _ in range(settings.repeats):
        if engine is None:
            own.append(time_way(ours, parts, device))
            _free(ours)
        else:
            began = now(device)
            _whole(ours, engine)
            own.append(Timing(0.0, now(device) - began))
        if reference is not None:
            others.append(time_way(reference, parts, device))
            del reference.sampler
            gc.collect()
    numbers["ours"] |= _speed(own, settings, split=engine is None)
    if reference is not None:
        numbers["reference"] |= _speed(others, settings, split=True)
        ratios = [other.seconds / mine.seconds for mine, other in zip(own, others, strict=True)]
        numbers["ratio"] = Spread.of(ratios).as_json()


def _speed(timings: list[Timing], settings: RolloutSettings, split: bool) -> dict[str, Any]:
    seconds = Spread.of([timing.seconds for timing in timings])
    numbers: dict[str, Any] = {
        "seconds": seconds.as_json(),
        "tokens_per_s": settings.batch * settings.tokens / seconds.median,
        "images_per_s": settings.batch / seconds.median,
    }
    if split:
        numbers["prefill_seconds"] = Spread.of([timing.prefill for timing in timings]).as_json()
        numbers["step_seconds"] = Spread.of([timing.steps / (settings.tokens - 1) for timing in timings]).as_json()
    return numbers


def _add_bandwidth(
    numbers: dict[str, Any],
    config: MentorConfig,
    settings: RolloutSettings,
    device: torch.device,
    policy: DecoderPolicy,
) -> None:
    size = policy.decoder.head.weight.element_size()
    halves = 2 if settings.sampling.guided else 1
    shape = RolloutShape(settings.prompts, settings.group, settings.prefix, settings.tokens, halves, size, size)
    moved, bandwidth = rollout_bytes(config, shape), copy_bandwidth(device)
    numbers |= {
        "bytes_moved": moved,
        "copy_bandwidth": bandwidth,
        "bandwidth_share": moved / numbers["ours"]["seconds"]["median"] / bandwidth,
    }


def _free(ours: Ours) -> None:
    """Let go of the caches, so that the other way has the memory."""
    if hasattr(ours, "decoding"):
        del ours.decoding
    gc.collect()
