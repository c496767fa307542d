"""A loaded Composite as the reward of other trainers: plain trl, and trainers with flow_grpo's reward callable.

    with Composite(entries) as composite:
        GRPOTrainer(
            reward_funcs=as_trl_reward_funcs(composite),
            args=GRPOConfig(reward_weights=reward_weights(composite), multi_objective_aggregation="normalize_then_sum"),
            ...
        )
        reward_fn = as_flow_grpo_reward(composite)  # (images, prompts, metadata) -> ({name: [N], "avg": [N]}, {})

Neither trainer can mask a missing score as the composite does; what becomes of one is said at each function. More
failed scores than the composite's failure rate, or one with ``on_missing: stop``, raise RewardFailure in both.

Shapes: N pictures, R trained rewards, H rows, W columns.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mentor_rewards.composite import Composite, CompositeScores, columns_of
from mentor_rewards.contract import RewardBatch, RewardError, RewardFailure
from mentor_rewards.pixels import picture_digest, rgb
from mentor_rewards.reward_schedule import is_async

TrlReward = Callable[..., list[float | None]] | Callable[..., Awaitable[list[float | None]]]
FlowGrpoReward = Callable[..., tuple[dict[str, np.ndarray], dict[str, Any]]]

log = logging.getLogger(__name__)

_SLACK = 0.01  # by which rounding may take a float beyond [0, 1]; pixels in [-1, 1] or [0, 255] go further


# -------------------------------------------------------------------------------------------------------------- trl


def as_trl_reward_funcs(composite: Composite, picture_column: str = "picture") -> list[TrlReward]:
    """One reward function per trained entry, named as the entry, in the order of ``composite.trained``.

    A function returns clip(scale * raw) of N samples, None where missing; the weights go to GRPOConfig, see
    ``reward_weights``. The composite scores once for all functions of a step. An entry with an async reward becomes an
    ``async def``, the others plain functions. Monitors are logged as ``monitor/<name>``, their mean, when trl lends
    ``log_metric``.

    The pictures are, in this order:
        - the column ``picture_column``: what a ``rollout_func`` returns beside the token ids, PIL pictures;
        - the completions themselves, each a PIL picture, a dict with "image", or a list of messages whose last part of
          type "image" has the picture under "image".
    Further columns of the dataset, all optional: ``references`` (a picture, a list of pictures or None), ``subject``
    (text or None), ``metadata`` (dict). The prompt is the text, or the text of the last user message.

    Missing scores: trl counts None as 0 in the weighted sum ("sum_then_normalize": 0 is then compared with the raw
    scores of the others), and as the group's mean in "normalize_then_sum", which is the better choice here. A sample
    without any score is logged by trl and gets advantage 0.
    """
    shared = _ScoredOnce(composite, picture_column)
    return [_trl_reward(shared, name, is_async(composite.rewards[name])) for name in composite.trained]


def reward_weights(composite: Composite) -> list[float]:
    """What GRPOConfig.reward_weights has to be for ``as_trl_reward_funcs(composite)``."""
    return [float(weight) for weight in composite.weights]


def _trl_reward(shared: _ScoredOnce, name: str, is_async: bool) -> TrlReward:
    def plain(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        return shared.column(name, prompts, completions, columns)

    async def waiting(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        return await asyncio.to_thread(shared.column, name, prompts, completions, columns)

    chosen: TrlReward = waiting if is_async else plain
    chosen.__name__ = chosen.__qualname__ = name
    return chosen


class _ScoredOnce:
    """The composite behind the functions: the first one asked in a step scores for all of them."""

    def __init__(self, composite: Composite, picture_column: str) -> None:
        self._composite, self._picture_column = composite, picture_column
        self._lock = threading.Lock()
        self._completions: list[Any] | None = None
        self._scores: CompositeScores | None = None
        self._open: set[str] = set()
        self._checked = False

    def column(
        self, name: str, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]
    ) -> list[float | None]:
        with self._lock:
            # trl hands the same list to all functions of a step. One that is asked twice wants new scores.
            if self._scores is None or self._completions is not completions or name not in self._open:
                self._scores = self._score(prompts, completions, columns)
                self._completions, self._open = completions, set(self._composite.trained)
            self._open.discard(name)
            values = self._scores.scaled(name)
            if not self._open:
                self._completions = self._scores = None
        return [None if np.isnan(value) else float(value) for value in values]

    def _score(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> CompositeScores:
        batch = _trl_batch(prompts, completions, columns, self._picture_column)
        if not self._checked:
            self._checked = True
            try:
                self._composite.check_columns(columns_of(batch))
            except RewardError as error:  # the first batch need not show all that the dataset has
                log.warning("%s", error)
        scores = self._composite.score(batch)
        log_metric = columns.get("log_metric")
        if log_metric is not None:
            for name in self._composite.monitors:
                values = scores.native(name)
                if not np.isnan(values).all():
                    log_metric(f"monitor/{name}", float(np.nanmean(values)))
        return scores


def _trl_batch(
    prompts: list[Any], completions: list[Any], columns: Mapping[str, Any], picture_column: str
) -> RewardBatch:
    n = len(completions)
    pictures = columns.get(picture_column) or completions
    nothing = [None] * n
    state = columns.get("trainer_state")
    return _batch(
        images=[_picture(item, f"sample {row}", picture_column) for row, item in enumerate(pictures)],
        prompts=[_prompt_text(prompt) for prompt in prompts],
        references=[_pictures(item, f"sample {row}") for row, item in enumerate(columns.get("references") or nothing)],
        subjects=list(columns.get("subject") or nothing),
        metadata=[dict(facts or {}) for facts in columns.get("metadata") or nothing],
        step=0 if state is None else int(state.global_step),
    )


def _picture(item: Any, where: str, picture_column: str) -> Image.Image:
    if isinstance(item, Image.Image):
        return rgb(item)
    if isinstance(item, Mapping) and isinstance(item.get("image"), Image.Image):
        return rgb(item["image"])
    if isinstance(item, list):
        parts = [part for message in item for part in _parts(message) if part.get("type") == "image"]
        if parts:
            return _picture(parts[-1], where, picture_column)
    raise RewardError(
        f"{where}: expected a picture in column '{picture_column}', or as the completion a PIL picture, a dict with "
        f"'image', or a message with a part of type 'image'; found {type(item).__name__}"
    )


def _pictures(item: Any, where: str) -> tuple[Image.Image, ...]:
    found = [] if item is None else [item] if isinstance(item, Image.Image) else list(item)
    for picture in found:
        if not isinstance(picture, Image.Image):
            raise RewardError(f"{where}: references: expected PIL pictures, found {type(picture).__name__}")
    return tuple(rgb(picture) for picture in found)


def _prompt_text(prompt: Any) -> str:
    """The words of a prompt, without marks for pictures."""
    if not isinstance(prompt, str):
        users = [message for message in prompt if message.get("role") == "user"] or list(prompt)
        prompt = " ".join(part.get("text", "") for part in _parts(users[-1]) if part.get("type") == "text")
    return " ".join(prompt.replace("<image>", " ").split())


def _parts(message: Any) -> list[Mapping[str, Any]]:
    """The content of a chat message, as parts."""
    content = message.get("content", "") if isinstance(message, Mapping) else ""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


# -------------------------------------------------------------------------------------------------------- flow_grpo


def as_flow_grpo_reward(composite: Composite) -> FlowGrpoReward:
    """``(images, prompts, metadata, ref_images=None, only_strict=True) -> (scores, {})`` as flow_grpo's multi_score.

    Args of the callable:
        images: tensor or array [N, 3, H, W] (or arrays [N, H, W, 3]), uint8 or float in [0, 1]; or N PIL pictures.
        prompts: N texts.
        metadata: N dicts; the key "subject" is taken as the subject's name. None for none.
        ref_images: one reference picture each, as ``images``.
        only_strict: GenEval's switch, without meaning here.

    Scores: an array [N] float64 of raw scores under the name of each reward, monitors included, NaN where missing, and
    under "avg" what is optimised: the sum (no mean, flow_grpo calls it so) of weight * clip(scale * raw) over the
    trained rewards, always finite.

    Missing scores: flow_grpo standardises "avg" over all processes and has no mask, so there it cannot be NaN. In
    "avg" a failed score counts as the mean of that reward over the same prompt's pictures in this call, or over the
    whole call where none of them has one; a reward that does not apply to a prompt adds nothing for all its pictures.
    This is a guess in the place of a score, where the composite's own aggregation leaves the score out. NaN in the
    other arrays makes flow_grpo's logged mean of that reward NaN; its training reads "avg" alone.

    Raises (the callable):
        RewardFailure: too many failed scores, or a reward without any score in the call to fill in from.
        RewardError: a prompt to which no trained reward applies; images of another shape.
    """

    def reward_fn(
        images: Any,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        ref_images: Any = None,
        only_strict: bool = True,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        facts = [dict(each or {}) for each in metadata] if metadata is not None else [{} for _ in prompts]
        references = [None] * len(prompts) if ref_images is None else _as_pil(ref_images, "ref_images")
        batch = _batch(
            images=_as_pil(images, "images"),
            prompts=[_prompt_text(prompt) for prompt in prompts],
            references=[_pictures(one, "ref_images") for one in references],
            subjects=[each.get("subject") for each in facts],
            metadata=facts,
        )
        scores = composite.score(batch)
        arrays = {name: scores.native(name) for name in composite.names}
        return {**arrays, "avg": _total(composite, scores, batch)}, {}

    return reward_fn


def _total(composite: Composite, scores: CompositeScores, batch: RewardBatch) -> np.ndarray:
    """Weighted sum [N] with failed scores filled in."""
    applies_NR = np.stack([np.array(scores.applies[name], dtype=bool) for name in composite.trained], axis=1)
    for row in np.flatnonzero(~applies_NR.any(axis=1)).tolist():
        raise RewardError(f"no trained reward applies to prompt '{batch.prompts[row]}': flow_grpo cannot leave it out")
    total_N = np.zeros(len(batch))
    for name, weight, applies_N in zip(composite.trained, composite.weights, applies_NR.T, strict=True):
        values_N = scores.scaled(name)
        for row in np.flatnonzero(applies_N & np.isnan(values_N)).tolist():
            values_N[row] = _stand_in(name, scores.scaled(name), np.array(batch.group_ids), row)
        total_N += weight * np.where(applies_N, values_N, 0.0)
    return total_N


def _stand_in(name: str, values_N: np.ndarray, groups_N: np.ndarray, row: int) -> float:
    for candidates in (values_N[groups_N == groups_N[row]], values_N):
        if not np.isnan(candidates).all():
            return float(np.nanmean(candidates))
    raise RewardFailure(f"reward '{name}': none of {len(values_N)} pictures could be scored, so 'avg' has no value")


def _as_pil(images: Any, what: str) -> list[Image.Image]:
    """PIL RGB from a tensor, an array or PIL pictures."""
    if isinstance(images, Sequence) and all(isinstance(image, Image.Image) for image in images):
        return [rgb(image) for image in images]
    if hasattr(images, "detach"):  # a torch tensor, of any device; float() since numpy has no bfloat16
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() else images
    pixels = np.asarray(images)
    if pixels.ndim == 4 and pixels.shape[1] == 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.ndim != 4 or pixels.shape[3] != 3:
        raise RewardError(f"{what}: expected PIL pictures, [N, 3, H, W] or [N, H, W, 3], found shape {pixels.shape}")
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.floating):
            raise RewardError(f"{what}: expected uint8, or floats in [0, 1], found {pixels.dtype}")
        if pixels.size and not (-_SLACK <= pixels.min() <= pixels.max() <= 1 + _SLACK):  # NaN is in no interval
            found = f"{pixels.min():.4g} to {pixels.max():.4g}"
            raise RewardError(f"{what}: expected uint8, or floats in [0, 1], found {found}")
        pixels = np.round(pixels * 255).clip(0, 255).astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in pixels]


# ------------------------------------------------------------------------------------------------------------- both


def _batch(
    images: list[Image.Image],
    prompts: list[str],
    references: list[tuple[Image.Image, ...]],
    subjects: list[str | None],
    metadata: list[dict[str, Any]],
    step: int = 0,
) -> RewardBatch:
    """Samples with the same prompt, references, subject and facts are one group."""
    keys = [
        (prompt, tuple(picture_digest(picture) for picture in pictures), subject, repr(facts))
        for prompt, pictures, subject, facts in zip(prompts, references, subjects, metadata, strict=True)
    ]
    places = {key: group for group, key in enumerate(dict.fromkeys(keys))}
    return RewardBatch(
        images=images,
        prompts=prompts,
        references=references,
        subjects=subjects,
        group_ids=[places[key] for key in keys],
        metadata=metadata,
        step=step,
    )
