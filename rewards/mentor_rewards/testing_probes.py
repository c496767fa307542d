"""The rule on monotonic probes: what the author calls worse must not score better, on average over a batch."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from PIL import Image, ImageFilter

from mentor_rewards.contract import Probe, RewardBatch
from mentor_rewards.testing_case import Case, NotApplicable, Scores, as_text


def probes(case: Case) -> str | None:
    """The probes that the spec names, then the pairs of the reward's own ``probes()``."""
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
    column = [as_text(references) for references in batch.references] if probe == "reference" else list(batch.prompts)
    n = len(batch)
    for other in range(row + 1, row + n):
        if column[other % n] != column[row]:
            return other % n
    raise NotApplicable(f"probe '{probe}': all samples of the batch have the same {probe}")
