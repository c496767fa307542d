"""The rules of the contract in the order in which they are tried; here those on scores and their form.

testing_resources.py has the rules on what a reward takes, testing_probes.py the one on what it must not like better.
"""

from __future__ import annotations

import math
import numbers
import pickle
import random
from dataclasses import replace

from PIL import Image

from mentor_rewards.contract import RewardBatch, RewardOutput, RewardSpec
from mentor_rewards.testing_case import Blocked, Case, Malformed, NotApplicable, Rule, as_text, copy_of, difference
from mentor_rewards.testing_guards import is_blocked
from mentor_rewards.testing_probes import probes
from mentor_rewards.testing_resources import gradients, lifecycle, memory, network


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
        reasons = case.plain_answer.reasons
        found = f" (first reason: {reasons[0]})" if reasons else ""
        return f"none of the pictures could be scored; hand over a batch that has what the reward needs{found}"
    return _not_numbers(case.plain_answer)


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
    return difference(case.plain, found[::-1], case.tolerance, "in a reversed batch")


def _permutation(case: Case) -> str | None:
    for seed in range(3):
        order = list(range(len(case.batch)))
        random.Random(seed).shuffle(order)
        found = case.scores(case.batch.select(order))
        problem = difference([case.plain[row] for row in order], found, case.tolerance, "in another order")
        if problem:
            return problem
    return None


def _batch_of_one(case: Case) -> str | None:
    if not case.spec.batch_invariant:
        raise NotApplicable("the spec declares batch_invariant=False")
    alone = [case.scores(case.batch.select([row]))[0] for row in range(len(case.batch))]
    return difference(case.plain, alone, case.tolerance, "alone")


def _deterministic(case: Case) -> str | None:
    if not case.spec.deterministic:
        raise NotApplicable("the spec declares deterministic=False")
    return difference(case.plain, case.scores(case.batch), 0.0, "the second time")


def _empty(case: Case) -> str | None:
    found = case.scores(case.batch.select([]))
    return None if found == [] else f"expected no scores, found {found}"


def _unscorable(case: Case) -> str | None:
    side = case.batch.images[0].size
    hopeless = [Image.new("RGB", side, "black"), Image.new("RGB", side, "white"), Image.new("RGB", (1, 1), "grey")]
    batch = case.batch.select([0, 1, 2])
    return _not_numbers(case.loaded.answer(replace(copy_of(batch), images=hopeless)))


def _odd_sizes(case: Case) -> str | None:
    for size in ((37, 53), (1, 1), (211, 3)):
        found = case.scores(_with_first(case.batch, case.batch.images[0].resize(size)))
        if case.spec.batch_invariant:
            beside = f"beside a picture of {size[0]} x {size[1]} pixels"
            problem = difference(case.plain[1:], found[1:], case.tolerance, beside, first=1)
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
        problem = difference(as_rgb, found, case.tolerance, f"with picture 0 in mode {image.mode}")
        if problem:
            return problem
    return None


def _with_first(batch: RewardBatch, image: Image.Image) -> RewardBatch:
    return replace(batch, images=[image, *batch.images[1:]])


def _inputs(case: Case) -> str | None:
    batch = copy_of(case.batch)
    names = ("images", "prompts", "references", "subjects", "group_ids", "metadata")
    before = {name: as_text(getattr(batch, name)) for name in names}
    case.loaded.answer(batch, copied=False)
    changed = [name for name in names if as_text(getattr(batch, name)) != before[name]]
    return f"{' and '.join(changed)} of the batch were changed" if changed else None


# In the order in which they are tried: memory and network before anything has been loaded.
RULES: tuple[Rule, ...] = (
    Rule("spec", "the spec is complete and picklable", "processes and run folders carry it", _spec),
    Rule("memory", "unload frees what load took", "devices are lent between the rollout and the rewards", memory),
    Rule("network", "no connection is opened, unless declared", "runs on closed machines hang in step 1", network),
    Rule("length", "one score, reason and detail per picture", "scores of other pictures would be learnt", _length),
    Rule("numbers", "a score is a finite number, or None with a reason", "one NaN spoils a whole step", _numbers),
    Rule("range", "scores stay in the declared range", "saturation is measured at its bounds", _range),
    Rule("order", "scores come in the order of the pictures", "scores of other pictures would be learnt", _order),
    Rule("permutation", "a shuffled batch has shuffled scores", "the place in a batch would be rewarded", _permutation),
    Rule("batch-of-one", "a batch of one equals a batch of many", "results would depend on batch sizes", _batch_of_one),
    Rule("deterministic", "the same batch scores the same", "a resumed run would differ", _deterministic),
    Rule("empty", "an empty batch has no scores", "a process may have nothing to score", _empty),
    Rule("unscorable", "hopeless pictures get a number or None", "policies draw such pictures", _unscorable),
    Rule("odd-sizes", "any size is scored or declined", "data sets have such pictures", _odd_sizes),
    Rule("modes", "RGBA and L score as RGB, or are declined", "files on disk have such modes", _modes),
    Rule("inputs", "the batch is not changed", "the next reward would see other pictures", _inputs),
    Rule("gradients", "no autograd graph is recorded", "memory grows by the size of all activations", gradients),
    Rule("probes", "what the author calls worse does not score better", "the policy learns what scores", probes),
    Rule("lifecycle", "load and unload can be repeated", "rewards are moved away and back", lifecycle),
)
