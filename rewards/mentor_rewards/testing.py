"""Contract checks for reward authors: run them on your own class, in pytest or with ``mentor rewards check``.

    from mentor_rewards.testing import check_reward, sample_batch

    def test_contract():
        check_reward(lambda: Sharpness(radius=2.0), sample_batch())

Every check builds its own reward from the factory and works on its own copy of the batch.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import pickle
import random
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from PIL import Image, ImageDraw

from mentor_rewards.contract import AnyReward, AsyncReward, Reward, RewardBatch, RewardOutput, RewardSpec

Factory = Callable[[], AnyReward]


class ContractViolation(AssertionError):
    """A reward that breaks the contract; lists every broken rule."""


@dataclass(frozen=True)
class CheckResult:
    """One rule: None as problem when it holds."""

    rule: str
    problem: str | None


@dataclass(frozen=True)
class _Case:
    """What a check works on."""

    factory: Factory
    batch: RewardBatch
    tolerance: float

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Scores of a freshly loaded reward."""
        reward = self.loaded()
        try:
            return _scores(reward, batch)
        finally:
            reward.unload()

    def loaded(self) -> AnyReward:
        reward = self.factory()
        reward.load("cpu", "float32")
        return reward


def check_reward(factory: Factory, batch: RewardBatch, tolerance: float = 1e-4) -> None:
    """Raise ContractViolation unless every rule holds; see run_checks."""
    broken = [f"{result.rule}: {result.problem}" for result in run_checks(factory, batch, tolerance) if result.problem]
    if broken:
        raise ContractViolation("\n".join(broken))


def run_checks(factory: Factory, batch: RewardBatch, tolerance: float = 1e-4) -> list[CheckResult]:
    """All rules on one reward.

    Args:
        factory: builds the reward, unloaded, e.g. ``lambda: MyReward(option=1)``.
        batch: at least 3 pictures that the reward can score; see sample_batch.
        tolerance: largest difference between scores that should be equal, relative to the larger of 1 and the score.
    """
    if len(batch) < 3:
        raise ValueError(f"check_reward: expected a batch of at least 3 pictures, found {len(batch)}")
    return [
        CheckResult(rule, _outcome(check, _Case(factory, _copied(batch), tolerance))) for rule, check in RULES.items()
    ]


def sample_batch(
    metadata: Sequence[Mapping[str, Any]] | None = None, size: int = 64, count: int = 6, seed: int = 0
) -> RewardBatch:
    """Simple drawn pictures with prompts, references and subjects, in groups of two; the same for the same arguments.

    Args:
        metadata: facts of the prompts, repeated as often as needed; default: a background colour.
        size: side in pixels.
    """
    rng = random.Random(seed)
    colours = ("red", "blue", "yellow", "white", "black", "green")
    images, references = [], []
    for n in range(count):
        images.append(_drawing(rng, size, colours[n % 6], colours[(n + 2) % 6]))
        if n % 2 == 0:
            references.append(_drawing(rng, size, "white", colours[(n + 2) % 6]))
    facts = metadata or [{"background": colours[n % 6]} for n in range(count)]
    return RewardBatch(
        images=images,
        prompts=[f"a {colours[(n // 2 * 2 + 2) % 6]} disc" for n in range(count)],
        references=[(references[n // 2],) for n in range(count)],
        subjects=["disc"] * count,
        group_ids=[n // 2 for n in range(count)],
        metadata=[facts[n % len(facts)] for n in range(count)],
    )


def _drawing(rng: random.Random, size: int, ground: str, ink: str) -> Image.Image:
    image = Image.new("RGB", (size, size), ground)
    side = rng.randint(size // 4, size // 2)
    left, top = rng.randint(0, size - side), rng.randint(0, size - side)
    ImageDraw.Draw(image).ellipse((left, top, left + side, top + side), fill=ink)
    return image


def _copied(batch: RewardBatch) -> RewardBatch:
    """A batch that a careless reward can change without spoiling the next check."""
    return replace(
        batch,
        images=[image.copy() for image in batch.images],
        references=[tuple(picture.copy() for picture in pictures) for pictures in batch.references],
        metadata=copy.deepcopy(list(batch.metadata)),
        shared={},
    )


def _outcome(check: Callable[[_Case], str | None], case: _Case) -> str | None:
    try:
        return check(case)
    except Exception as error:  # whatever an author's code raises is a finding, with the line that raised it
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


def _scores(reward: AnyReward, batch: RewardBatch) -> list[float | None]:
    """Scores of one call that shares no work with others; raises AssertionError for a malformed answer."""
    fresh = replace(batch, shared={})
    if inspect.iscoroutinefunction(getattr(reward, "ascore", None)):
        output = asyncio.run(cast(AsyncReward, reward).ascore(fresh))
    else:
        output = cast(Reward, reward).score(fresh)
    assert isinstance(output, RewardOutput), f"expected a RewardOutput, found {type(output).__name__}"
    lists: dict[str, list[Any]] = {"scores": output.scores, **({"reasons": output.reasons} if output.reasons else {})}
    for name, values in {**lists, **output.details}.items():
        assert len(values) == len(batch), f"expected {len(batch)} {name}, found {len(values)}"
    for row, value in enumerate(output.scores):
        reason = output.reasons[row] if output.reasons else None
        assert value is not None or reason, f"score {row} is None without a reason"
    return output.scores


def _check_spec(case: _Case) -> str | None:
    spec = getattr(case.factory(), "spec", None)
    if not isinstance(spec, RewardSpec):
        return f"expected a RewardSpec, found {type(spec).__name__}"
    if not spec.name.isidentifier() or spec.name != spec.name.lower():
        return f"expected a snake_case name, found {spec.name!r}"
    return None if pickle.loads(pickle.dumps(spec)) == spec else "changes when pickled"


def _check_numbers(case: _Case) -> str | None:
    scores = case.score(case.batch)
    if all(score is None for score in scores):
        return "none of the pictures could be scored; hand over a batch that has what the reward needs"
    for row, score in enumerate(scores):
        if score is None:
            continue
        if isinstance(score, bool) or not isinstance(score, float | int):
            return f"expected float or None, found {type(score).__name__} at {row}"
        if not math.isfinite(score):
            return f"found {score} at {row}; None with a reason is the way to say 'cannot score'"
    return None


def _check_range(case: _Case) -> str | None:
    low, high = case.factory().spec.range
    for score in case.score(case.batch):
        if score is not None and (
            (low is not None and score < low - case.tolerance) or (high is not None and score > high + case.tolerance)
        ):
            return f"{score} lies outside of the declared range [{low}, {high}]"
    return None


def _check_permutation(case: _Case) -> str | None:
    order = list(range(len(case.batch)))
    random.Random(1).shuffle(order)
    plain, shuffled = case.score(case.batch), case.score(case.batch.select(order))
    return _difference([plain[row] for row in order], shuffled, case.tolerance, "in another order")


def _check_batch_of_one(case: _Case) -> str | None:
    if not case.factory().spec.batch_invariant:
        return None
    together = case.score(case.batch)
    reward = case.loaded()
    alone = [_scores(reward, case.batch.select([row]))[0] for row in range(len(case.batch))]
    reward.unload()
    return _difference(together, alone, case.tolerance, "alone")


def _check_deterministic(case: _Case) -> str | None:
    if not case.factory().spec.deterministic:
        return None
    reward = case.loaded()
    first, second = _scores(reward, case.batch), _scores(reward, case.batch)
    reward.unload()
    return _difference(first, second, 0.0, "the second time")


def _check_empty(case: _Case) -> str | None:
    return None if case.score(case.batch.select([])) == [] else "expected no scores for an empty batch"


def _check_sizes_and_modes(case: _Case) -> str | None:
    """Any size and mode has to be scored or declined, and must not change the others' scores."""
    images = list(case.batch.images)
    plain = case.score(case.batch)
    for change in (lambda i: i.resize((37, 53)), lambda i: i.convert("L"), lambda i: i.convert("RGBA"), _one_pixel):
        scores = case.score(replace(case.batch, images=[change(images[0]), *images[1:]]))
        if case.factory().spec.batch_invariant:
            problem = _difference(plain[1:], scores[1:], case.tolerance, "beside a picture of another size or mode")
            if problem:
                return problem
    return None


def _one_pixel(image: Image.Image) -> Image.Image:
    return image.resize((1, 1))


def _check_inputs_kept(case: _Case) -> str | None:
    def state() -> list[Any]:
        pictures = [*case.batch.images, *(reference for row in case.batch.references for reference in row)]
        facts = (case.batch.prompts, case.batch.subjects, case.batch.group_ids, [dict(m) for m in case.batch.metadata])
        return [[picture.tobytes() for picture in pictures], *(repr(fact) for fact in facts)]

    before = state()
    case.score(case.batch)
    return None if before == state() else "pictures, prompts or metadata of the batch were changed"


def _check_lifecycle(case: _Case) -> str | None:
    case.factory().unload()  # without load: nothing to do
    reward = case.loaded()
    first = _scores(reward, case.batch)
    reward.unload()
    reward.unload()
    reward.load("cpu", "float32")
    again = _scores(reward, case.batch)
    reward.unload()
    return _difference(first, again, case.tolerance, "after unload and load")


def _difference(
    expected: Sequence[float | None], found: Sequence[float | None], tolerance: float, when: str
) -> str | None:
    for row, (one, two) in enumerate(zip(expected, found, strict=True)):
        same = one is two if one is None or two is None else abs(one - two) <= tolerance * max(1.0, abs(one))
        if not same:
            return f"picture {row} scores {one}, and {two} {when}"
    return None


RULES: dict[str, Callable[[_Case], str | None]] = {
    "spec is complete and picklable": _check_spec,
    "one finite float or None per picture": _check_numbers,
    "scores stay in the declared range": _check_range,
    "scores follow the order of the pictures": _check_permutation,
    "a batch of one equals a batch of many": _check_batch_of_one,
    "the same batch scores the same": _check_deterministic,
    "an empty batch is fine": _check_empty,
    "odd sizes and modes are fine": _check_sizes_and_modes,
    "inputs are not changed": _check_inputs_kept,
    "load and unload can be repeated": _check_lifecycle,
}
