"""The contract between rewards and trainers as rules, each of which can be tried on its own.

A rule's check returns None when it holds, else what was found. It raises NotApplicable where the spec declares an
exception from it, and Blocked where another rule has to hold first.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import numbers
import pickle
import random
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from PIL import Image, ImageFilter

from mentor_rewards.contract import AnyReward, AsyncReward, Probe, Reward, RewardBatch, RewardOutput, RewardSpec
from mentor_rewards.testing_guards import (
    RSS_SLACK,
    array_bytes,
    blocked_network,
    is_blocked,
    recorded_graphs,
    resident_bytes,
    traced_arrays,
    trim_memory,
)

Factory = Callable[[], AnyReward]
Scores = Sequence[float | None]
ARRAY_SLACK = 256 * 2**10  # bytes of tables that a reward may keep after unload


class NotApplicable(Exception):
    """The spec declares that the rule does not hold for this reward, or declares nothing that could be tried."""


class Blocked(Exception):
    """The rule cannot be tried before another one holds."""


class Malformed(Exception):
    """An answer that is not one score per picture."""


@dataclass(frozen=True)
class Rule:
    """One rule of the contract.

    Attributes:
        name: short, for test names and ``-k``.
        states: what holds.
        why: what goes wrong in training when it does not.
    """

    name: str
    states: str
    why: str
    check: Callable[[Case], str | None] = field(repr=False)


class Loaded:
    """A loaded reward and, for one that waits, its event loop; unloaded by ``close``."""

    def __init__(self, case: Case) -> None:
        self.reward = case.factory()
        self.reward.load(case.device, case.dtype)
        self._runner = asyncio.Runner()

    def answer(self, batch: RewardBatch, copied: bool = True) -> RewardOutput:
        """One call that shares no work with others, on a copy of the batch: a careless reward may change it."""
        fresh = _copied(batch) if copied else replace(batch, shared={})
        if inspect.iscoroutinefunction(getattr(self.reward, "ascore", None)):
            output = self._runner.run(cast(AsyncReward, self.reward).ascore(fresh))
        else:
            output = cast(Reward, self.reward).score(fresh)
        _check_form(output, len(batch))
        return output

    def scores(self, batch: RewardBatch) -> list[float | None]:
        """The scores alone."""
        return self.answer(batch).scores

    def close(self) -> None:
        """Unload."""
        self.reward.unload()
        self._runner.close()


@dataclass
class Case:
    """What rules are tried on: how to build the reward, and pictures that it can score.

    Attributes:
        factory: builds the reward, unloaded.
        batch: at least 3 pictures.
        tolerance: largest difference between scores that should be equal, relative to the larger of 1 and the score.
        device, dtype: for ``load``.
    """

    factory: Factory
    batch: RewardBatch
    tolerance: float = 1e-4
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        self.batch = _copied(self.batch)
        self._loaded: Loaded | None = None

    @cached_property
    def spec(self) -> RewardSpec:
        """What the author declares."""
        with blocked_network():
            try:
                spec = getattr(self.factory(), "spec", None)
            except Exception as error:
                raise Blocked("'spec' has to hold first") from error
        if not isinstance(spec, RewardSpec):
            raise Blocked("'spec' has to hold first")
        return spec

    def require(self, rule: Rule) -> None:
        """Raise Blocked unless what the rule builds on is there: the spec, and scores of the batch as it stands."""
        if rule.name != "spec":
            _ = self.spec
        if rule.name not in ("spec", "memory", "network", "length"):
            _ = self.plain

    def declares_network(self) -> bool:
        """Whether the spec, as far as there is one, allows connections."""
        try:
            return self.spec.network
        except Blocked:
            return False

    @property
    def loaded(self) -> Loaded:
        """One loaded reward for all rules that only score, as a trainer has one for all steps."""
        if self._loaded is None:
            self._loaded = Loaded(self)
        return self._loaded

    @cached_property
    def plain(self) -> list[float | None]:
        """Scores of the batch as it stands; without them nothing can be compared."""
        try:
            return self.loaded.scores(self.batch)
        except Exception as error:
            raise Blocked("'length' has to hold first") from error

    def scores(self, batch: RewardBatch) -> list[float | None]:
        """Scores of the shared reward on a batch of its own."""
        return self.loaded.scores(batch)

    def close(self) -> None:
        """Unload the shared reward."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None


def _check_form(output: Any, n: int) -> None:
    if not isinstance(output, RewardOutput):
        raise Malformed(f"expected a RewardOutput, found {type(output).__name__}")
    columns: dict[str, Sequence[Any]] = {"scores": output.scores, **output.details}
    if output.reasons:
        columns["reasons"] = output.reasons
    for name, values in columns.items():
        if len(values) != n:
            raise Malformed(f"expected {n} {name}, one per picture, found {len(values)}")


def _copied(batch: RewardBatch) -> RewardBatch:
    return replace(
        batch,
        images=[image.copy() for image in batch.images],
        references=[tuple(picture.copy() for picture in pictures) for pictures in batch.references],
        metadata=copy.deepcopy(list(batch.metadata)),
        shared={},
    )


def raised(error: BaseException) -> str:
    """An author's exception as a finding, with the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


def _spec(case: Case) -> str | None:
    spec = getattr(case.factory(), "spec", None)
    if not isinstance(spec, RewardSpec):
        return f"expected a RewardSpec, found {type(spec).__name__}"
    if not spec.name.replace(".", "_").isidentifier() or spec.name != spec.name.lower():
        return f"expected a snake_case name, found {spec.name!r}"
    low, high = spec.range
    if low is not None and high is not None and not low < high:
        return f"expected a range (low, high) with low < high, found {spec.range}"
    return None if pickle.loads(pickle.dumps(spec)) == spec else "changes when pickled"


def _memory(case: Case) -> str | None:
    case.close()
    start = resident_bytes()
    with traced_arrays():
        before = array_bytes()
        held, peak = _used(case)
        kept = array_bytes() - before
    if kept > ARRAY_SLACK:
        return f"{_mib(kept)} of arrays and tensors are still alive after unload (allowed: {_mib(ARRAY_SLACK)})"
    del held
    if peak - start < RSS_SLACK:
        return None  # nothing large was loaded
    trim_memory()
    start = resident_bytes()  # anew: what the first load imported stays
    _held, peak = _used(case)
    trim_memory()
    left, taken = resident_bytes() - start, peak - start
    if left > max(RSS_SLACK, taken / 2):
        return (
            f"{_mib(left)} of the {_mib(taken)} that load took are not given back (allowed: {_mib(RSS_SLACK)} or half)"
        )
    return None


def _used(case: Case) -> tuple[AnyReward, int]:
    """A reward after load, one score and unload; and the memory of the process before unload."""
    loaded = Loaded(case)
    try:
        loaded.answer(case.batch)
    except Exception as error:
        raise Blocked("'length' has to hold first") from error
    peak = resident_bytes()
    loaded.close()
    return loaded.reward, peak


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def _network(case: Case) -> str | None:
    if case.spec.network:
        raise NotApplicable("the spec declares network=True")
    case.close()
    with blocked_network() as attempts:
        try:
            _used(case)
        except Exception:
            if not attempts:
                raise
    if not attempts:
        return None
    return (
        f"tried to {attempts[0]}, and RewardSpec.network is False; declare it, or have the weights on disk "
        "(HF_HUB_OFFLINE=1)"
    )


def _length(case: Case) -> str | None:
    try:
        for rows in (range(len(case.batch)), [0], [0, 0, 1]):
            case.scores(case.batch.select(list(rows)))
    except Malformed as error:
        return str(error)
    except Exception as error:
        if is_blocked(error):
            raise Blocked("'network' has to hold first") from error
        raise
    return None


def _numbers(case: Case) -> str | None:
    if all(score is None for score in case.plain):
        reasons = case.loaded.answer(case.batch).reasons
        found = f" (first reason: {reasons[0]})" if reasons else ""
        return f"none of the pictures could be scored; hand over a batch that has what the reward needs{found}"
    return _not_numbers(case.loaded.answer(case.batch))


def _not_numbers(output: RewardOutput) -> str | None:
    for row, score in enumerate(output.scores):
        if score is None:
            if not (output.reasons and output.reasons[row]):
                return f"score {row} is None without a reason"
        elif isinstance(score, bool) or not isinstance(score, numbers.Real):
            return f"expected float or None, found {type(score).__name__} at {row}"
        elif not math.isfinite(score):
            return f"found {score} at {row}; None with a reason is the way to say 'cannot score'"
    return None


def _range(case: Case) -> str | None:
    low, high = case.spec.range
    for score in case.plain:
        if score is not None and (
            (low is not None and score < low - case.tolerance) or (high is not None and score > high + case.tolerance)
        ):
            return f"{score} lies outside of the declared range [{low}, {high}]"
    return None


def _order(case: Case) -> str | None:
    found = case.scores(case.batch.select(range(len(case.batch))[::-1]))
    return _difference(case.plain, found[::-1], case.tolerance, "in a reversed batch")


def _permutation(case: Case) -> str | None:
    for seed in range(3):
        order = list(range(len(case.batch)))
        random.Random(seed).shuffle(order)
        found = case.scores(case.batch.select(order))
        problem = _difference([case.plain[row] for row in order], found, case.tolerance, "in another order")
        if problem:
            return problem
    return None


def _batch_of_one(case: Case) -> str | None:
    if not case.spec.batch_invariant:
        raise NotApplicable("the spec declares batch_invariant=False")
    alone = [case.scores(case.batch.select([row]))[0] for row in range(len(case.batch))]
    return _difference(case.plain, alone, case.tolerance, "alone")


def _deterministic(case: Case) -> str | None:
    if not case.spec.deterministic:
        raise NotApplicable("the spec declares deterministic=False")
    return _difference(case.plain, case.scores(case.batch), 0.0, "the second time")


def _empty(case: Case) -> str | None:
    found = case.scores(case.batch.select([]))
    return None if found == [] else f"expected no scores, found {found}"


def _unscorable(case: Case) -> str | None:
    side = case.batch.images[0].size
    hopeless = [Image.new("RGB", side, "black"), Image.new("RGB", side, "white"), Image.new("RGB", (1, 1), "grey")]
    batch = case.batch.select([0, 1, 2])
    return _not_numbers(case.loaded.answer(replace(_copied(batch), images=hopeless)))


def _odd_sizes(case: Case) -> str | None:
    for size in ((37, 53), (1, 1), (211, 3)):
        found = case.scores(_with_first(case.batch, case.batch.images[0].resize(size)))
        if case.spec.batch_invariant:
            beside = f"beside a picture of {size[0]} x {size[1]} pixels"
            problem = _difference(case.plain[1:], found[1:], case.tolerance, beside, first=1)
            if problem:
                return problem
    return None


def _modes(case: Case) -> str | None:
    grey = case.batch.images[0].convert("L")
    for image in (case.batch.images[0].convert("RGBA"), grey):
        as_rgb = case.scores(_with_first(case.batch, image.convert("RGB")))
        found = case.scores(_with_first(case.batch, image))
        if found[0] is None:
            as_rgb[0] = None  # declining a mode is allowed
        problem = _difference(as_rgb, found, case.tolerance, f"with picture 0 in mode {image.mode}")
        if problem:
            return problem
    return None


def _with_first(batch: RewardBatch, image: Image.Image) -> RewardBatch:
    return replace(batch, images=[image, *batch.images[1:]])


def _inputs(case: Case) -> str | None:
    batch = _copied(case.batch)
    names = ("images", "prompts", "references", "subjects", "group_ids", "metadata")
    before = {name: _state(getattr(batch, name)) for name in names}
    case.loaded.answer(batch, copied=False)
    changed = [name for name in names if _state(getattr(batch, name)) != before[name]]
    return f"{' and '.join(changed)} of the batch were changed" if changed else None


def _state(column: Any) -> str:
    """All that a reward could change, as text; pictures by their bytes."""
    if isinstance(column, Image.Image):
        return f"{column.mode} {column.size} {column.tobytes().hex()}"
    if isinstance(column, list | tuple):
        return f"[{', '.join(map(_state, column))}]"
    return repr(column)


def _gradients(case: Case) -> str | None:
    reward = case.loaded
    reward.answer(case.batch)
    with recorded_graphs() as kept:
        reward.answer(case.batch)
    if not kept:
        return None
    return f"autograd kept {len(kept)} tensors ({_mib(sum(kept))}); score under torch.inference_mode() or no_grad()"


def _probes(case: Case) -> str | None:
    declared = sorted(case.spec.probes)
    own = getattr(case.loaded.reward, "probes", None)
    if not declared and own is None:
        raise NotApplicable("the spec declares no probes")
    for probe in declared:
        problem = _raised_mean(case, case.plain, case.scores(_worse(case.batch, probe)), _MEANING[probe])
        if problem:
            return problem
    for number, (better, worse) in enumerate(own() if own is not None else []):
        problem = _raised_mean(case, case.scores(better), case.scores(worse), f"pair {number} of probes()")
        if problem:
            return problem
    return None


_MEANING: dict[Probe, str] = {
    "blur": "blurred pictures",
    "noise": "noise over the pictures",
    "prompt": "prompts of other samples",
    "reference": "references of other samples",
}


def _raised_mean(case: Case, better: Scores, worse: Scores, what: str) -> str | None:
    if len(better) != len(worse):
        return f"{what}: expected batches of one length, found {len(better)} and {len(worse)}"
    pairs = [(one, two) for one, two in zip(better, worse, strict=True) if one is not None and two is not None]
    if not pairs:
        return f"{what}: no picture was scored in both batches"
    before, after = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
    gain = (after - before) * (1 if case.spec.higher_is_better else -1)
    if gain <= case.tolerance * max(1.0, abs(before)):
        return None
    return f"{what} make the mean score better: {before:.6g} became {after:.6g}"


def _worse(batch: RewardBatch, probe: Probe) -> RewardBatch:
    """The batch with one thing spoilt."""
    if probe == "blur":
        spoilt = [image.filter(ImageFilter.GaussianBlur(max(1.0, min(image.size) / 24))) for image in batch.images]
        return replace(batch, images=spoilt)
    if probe == "noise":
        return replace(batch, images=[_noisy(image, row) for row, image in enumerate(batch.images)])
    other = [_unlike(batch, row, probe) for row in range(len(batch))]
    if probe == "reference":
        return replace(batch, references=[batch.references[row] for row in other])
    asked = batch.select(other)
    return replace(batch, prompts=asked.prompts, subjects=asked.subjects, metadata=asked.metadata)


def _noisy(image: Image.Image, seed: int) -> Image.Image:
    noise = Image.frombytes("RGB", image.size, random.Random(seed).randbytes(3 * image.width * image.height))
    return Image.blend(image.convert("RGB"), noise, 0.5)


def _unlike(batch: RewardBatch, row: int, probe: Probe) -> int:
    """The next sample that has another prompt, or another reference."""
    column = [_state(references) for references in batch.references] if probe == "reference" else list(batch.prompts)
    n = len(batch)
    for other in range(row + 1, row + n):
        if column[other % n] != column[row]:
            return other % n
    raise NotApplicable(f"probe '{probe}': all samples of the batch have the same {probe}")


def _lifecycle(case: Case) -> str | None:
    plain = case.plain
    case.close()
    case.factory().unload()  # without load: nothing to do
    loaded = Loaded(case)
    loaded.reward.unload()
    loaded.reward.unload()
    loaded.reward.load(case.device, case.dtype)
    again = loaded.scores(case.batch)
    loaded.close()
    return _difference(plain, again, case.tolerance, "after unload and load")


def _difference(expected: Scores, found: Scores, tolerance: float, when: str, first: int = 0) -> str | None:
    for row, (one, two) in enumerate(zip(expected, found, strict=True), first):
        same = one is two if one is None or two is None else abs(one - two) <= tolerance * max(1.0, abs(one))
        if not same:
            return f"picture {row} scores {one}, and {two} {when}"
    return None


# In the order in which they are tried: memory and network before anything has been loaded.
RULES: tuple[Rule, ...] = (
    Rule("spec", "the spec is complete and picklable", "processes and run folders carry it", _spec),
    Rule("memory", "unload frees what load took", "devices are lent between the rollout and the rewards", _memory),
    Rule("network", "no connection is opened, unless declared", "runs on closed machines hang in step 1", _network),
    Rule("length", "one score, reason and detail per picture", "scores of other pictures would be learnt", _length),
    Rule("numbers", "a score is a finite number, or None with a reason", "one NaN spoils a whole step", _numbers),
    Rule("range", "scores stay in the declared range", "saturation is measured at its bounds", _range),
    Rule("order", "scores come in the order of the pictures", "scores of other pictures would be learnt", _order),
    Rule("permutation", "a shuffled batch has shuffled scores", "the place in a batch would be rewarded", _permutation),
    Rule("batch-of-one", "a batch of one equals a batch of many", "results would depend on batch sizes", _batch_of_one),
    Rule("deterministic", "the same batch scores the same", "a resumed run would differ", _deterministic),
    Rule("empty", "an empty batch has no scores", "a process may have nothing to score", _empty),
    Rule(
        "unscorable",
        "hopeless pictures get a number or None",
        "policies draw such pictures",
        _unscorable,
    ),
    Rule("odd-sizes", "any size is scored or declined", "data sets have such pictures", _odd_sizes),
    Rule("modes", "RGBA and L score as RGB, or are declined", "files on disk have such modes", _modes),
    Rule("inputs", "the batch is not changed", "the next reward would see other pictures", _inputs),
    Rule("gradients", "no autograd graph is recorded", "memory grows by the size of all activations", _gradients),
    Rule("probes", "what the author calls worse does not score better", "the policy learns what scores", _probes),
    Rule("lifecycle", "load and unload can be repeated", "rewards are moved away and back", _lifecycle),
)
