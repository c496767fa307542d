"""Rollouts: prompts -> groups of pictures with the sampler's own log-probs. Knows nothing of trl.

What is drawn for a sample depends on (seed, uid, member) alone: its place in the group, not the process, the batch or
the step it is drawn in. So one process and four draw the same pictures, and a resumed run goes on exactly.

Shapes: N samples, K unique prompts, G group size (N = K*G, group-contiguous), T prefix length, L image tokens,
C encoder width, M pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from mentor_rewards.contract import RewardBatch
from PIL import Image

from mentor_base.data.schema import Prompt
from mentor_base.decode_graph import DecodeEngine
from mentor_base.generate import generate
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.prefix import Prefix
from mentor_base.processor import MentorProcessor
from mentor_base.settings import Sampling

POLICY, REFERENCE = "policy", "reference"  # owners of cached prefixes
TRAINING_STREAM, MONITOR_STREAM = 1, 2  # keep the draws of training and of the fixed prompts apart
GUIDANCE_STREAM = 3


class Prompts(Protocol):
    """Prompts by uid: a PromptList, or a plain sequence."""

    def __getitem__(self, uid: int, /) -> Prompt: ...


@dataclass(frozen=True)
class Rollout:
    """N pictures and how they came about.

    Attributes:
        prompts: the prompt of each sample.
        group_ids: uid of the prompt; samples of one prompt share it.
        tokens_NL: drawn tokens, long.
        sampler_logp_NL: their log-probs under the distribution that they were drawn from, float32.
        images: the decoded pictures, PIL RGB.
    """

    prompts: tuple[Prompt, ...]
    group_ids: tuple[int, ...]
    tokens_NL: torch.Tensor
    sampler_logp_NL: torch.Tensor
    images: list[Image.Image]

    def __len__(self) -> int:
        return len(self.group_ids)

    @classmethod
    def join(cls, parts: Sequence[Rollout]) -> Rollout:
        """Neighbouring parts as one."""
        return cls(
            prompts=tuple(prompt for part in parts for prompt in part.prompts),
            group_ids=tuple(uid for part in parts for uid in part.group_ids),
            tokens_NL=torch.cat([part.tokens_NL for part in parts]),
            sampler_logp_NL=torch.cat([part.sampler_logp_NL for part in parts]),
            images=[image for part in parts for image in part.images],
        )


@dataclass(frozen=True)
class Groups:
    """How N samples are laid out so that a prompt's prefix is computed once: whole groups side by side.

    Attributes:
        uids: the K prompts, ascending; the samples of one are neighbours.
        size: G, samples per prompt; 1 (and K = N, uids repeated) where the prompts have unequal numbers of samples.
        order_N: takes rows as given to rows as laid out.
        inverse_N: takes them back.
    """

    uids: tuple[int, ...]
    size: int
    order_N: torch.Tensor
    inverse_N: torch.Tensor

    @classmethod
    def of(cls, uids_N: Sequence[int]) -> Groups:
        """The layout of samples with these uids, whatever order they come in (trl shuffles them)."""
        given_N = np.asarray(uids_N)
        order_N = torch.from_numpy(np.argsort(given_N, kind="stable"))
        unique, counts = np.unique(given_N, return_counts=True)
        whole = bool((counts == counts[0]).all())
        uids = unique if whole else np.sort(given_N)
        return cls(tuple(uids.tolist()), int(counts[0]) if whole else 1, order_N, order_N.argsort())


def chunks_of(uids_N: Sequence[int], prompts: int | None) -> list[slice]:
    """Rows of so many neighbouring prompts at a time, none of them divided; None: all rows."""
    if prompts is None:
        return [slice(0, len(uids_N))]
    counts = [len(list(rows)) for _, rows in groupby(uids_N)]
    bounds = [sum(counts[:place]) for place in range(0, len(counts), prompts)]
    return [slice(start, end) for start, end in zip(bounds, [*bounds[1:], len(uids_N)], strict=True)]


class PromptStore:
    """The prompts in use, by uid, and what was computed from them: processor inputs, and prefixes of frozen encoders.

    Args:
        prompts: all prompts of the run.
        processor: turns prompts into encoder inputs.
        frozen_encoder: whether the policy's encoder is frozen, so that a prefix stays valid until ``keep_only``.
    """

    def __init__(self, prompts: Prompts, processor: MentorProcessor, frozen_encoder: bool) -> None:
        self.prompts, self.processor, self.frozen_encoder = prompts, processor, frozen_encoder
        self._prompts: dict[int, Prompt] = {}
        self._inputs: dict[tuple[int, ...], dict[str, Any]] = {}
        self._prefixes: dict[str, dict[int, Prefix]] = {}

    def __getitem__(self, uid: int) -> Prompt:
        """The prompt, drawn once."""
        if uid not in self._prompts:
            self._prompts[uid] = self.prompts[uid]
        return self._prompts[uid]

    def keep_only(self, uids: Iterable[int]) -> None:
        """Forget all other prompts and what was computed from them."""
        kept = set(uids)
        self._prompts = {uid: prompt for uid, prompt in self._prompts.items() if uid in kept}
        self._inputs = {key: value for key, value in self._inputs.items() if kept.issuperset(key)}
        for rows in self._prefixes.values():
            for uid in rows.keys() - kept:
                del rows[uid]

    def forget(self, owner: str) -> None:
        """Drop the prefixes of an owner whose weights have changed."""
        self._prefixes.pop(owner, None)

    def inputs(self, uids: Sequence[int], device: torch.device) -> dict[str, Any]:
        """Encoder inputs of these prompts: input_ids_KT, attention_mask_KT, pixel_values_M3HW."""
        key = tuple(uids)
        if key not in self._inputs:
            self._inputs[key] = self.processor([self[uid] for uid in key])
        return {
            name: value.to(device) if torch.is_tensor(value) else value for name, value in self._inputs[key].items()
        }

    def prefix(self, model: torch.nn.Module, uids: Sequence[int], device: torch.device, owner: str) -> Prefix:
        """Prefixes of these prompts (uids may repeat) by ``model``, no gradient; ``owner`` names it in the cache."""
        held = self._prefixes.setdefault(owner, {}) if self._is_frozen(owner) else {}
        fresh = tuple(uid for uid in dict.fromkeys(uids) if uid not in held)
        if fresh:
            with torch.no_grad():
                encoded = model(mode="encode", **self.inputs(fresh, device))
            held.update(zip(fresh, _unpadded(encoded), strict=True))
        return Prefix.join([held[uid] for uid in uids])

    def read(self, model: torch.nn.Module, uids: Sequence[int], device: torch.device, owner: str) -> None:
        """Encode prompts whose prefixes can be kept, in one batch: parts of them then have the numbers of the whole."""
        if self._is_frozen(owner):
            self.prefix(model, uids, device, owner)

    def condition(
        self, model: torch.nn.Module, uids: Sequence[int], device: torch.device, owner: str
    ) -> dict[str, Any]:
        """What the scoring call of ``model`` takes: a prefix, or encoder inputs where the encoder is trained."""
        if self._is_frozen(owner) or not torch.is_grad_enabled():
            return {"prefix": self.prefix(model, uids, device, owner)}
        return self.inputs(uids, device)

    def _is_frozen(self, owner: str) -> bool:
        return self.frozen_encoder or owner == REFERENCE


def _unpadded(prefix: Prefix) -> list[Prefix]:
    """The K prefixes one by one, without their padding (which is on the left)."""
    lengths = prefix.mask_KT.sum(dim=1).tolist()
    return [
        Prefix(*(part[row : row + 1, part.shape[1] - length :] for part in prefix))
        for row, length in enumerate(lengths)
    ]


@torch.no_grad()
def roll_out(
    model: MentorForConditionalGeneration,
    store: PromptStore,
    uids_N: Sequence[int],
    members_N: Sequence[int],
    sampling: Sampling,
    seed: int,
    stream: int = TRAINING_STREAM,
    owner: str = POLICY,
    scales_N: torch.Tensor | None = None,
    engine: DecodeEngine | None = None,
) -> Rollout:
    """Draw one picture per row; row i is member ``members_N[i]`` of the group of prompt ``uids_N[i]``.

    ``scales_N``: the rows' own guidance scales, in place of ``sampling.guidance_scale``. ``engine``: see
    mentor_base/decode_graph.py. The model is put into eval mode for the time being.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    groups = Groups.of(uids_N)
    noise_NL = uniforms(uids_N, members_N, model.config.image_tokens, seed, stream).to(device)
    prefix = store.prefix(model, groups.uids, device, owner)
    laid_out = None if scales_N is None else scales_N[groups.order_N].to(device)
    noise_NL = noise_NL[groups.order_N]
    drawn = generate(model, prefix, groups.size, sampling, uniforms_NL=noise_NL, scales_N=laid_out, engine=engine)
    tokens_NL = drawn.tokens_NL[groups.inverse_N]
    with torch.autocast(device.type, enabled=False):
        images = model.decode_images(tokens_NL)
    model.train(training)
    return Rollout(
        prompts=tuple(store[uid] for uid in uids_N),
        group_ids=tuple(uids_N),
        tokens_NL=tokens_NL,
        sampler_logp_NL=drawn.logp_NL[groups.inverse_N].float(),
        images=images,
    )


def uniforms(uids_N: Sequence[int], members_N: Sequence[int], length: int, seed: int, stream: int) -> torch.Tensor:
    """Uniform numbers [N, L] in [0, 1) that decide the draws; row i is a function of (seed, stream, uid, member)."""
    rows = [
        np.random.default_rng([stream, seed, uid, member]).random(length)
        for uid, member in zip(uids_N, members_N, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))


def guidance_scales(low_high: tuple[float, float], uids_N: Sequence[int], seed: int) -> torch.Tensor:
    """Guidance scales_N, float32, uniform in [low, high]; a prompt's is a function of (seed, uid)."""
    scales = {uid: np.random.default_rng([GUIDANCE_STREAM, seed, uid]).uniform(*low_high) for uid in set(uids_N)}
    return torch.tensor([scales[uid] for uid in uids_N], dtype=torch.float32)


def reward_batch(rollout: Rollout, step: int) -> RewardBatch:
    """The rollout as rewards see it."""
    prompts = rollout.prompts
    return RewardBatch(
        images=rollout.images,
        prompts=[prompt.plain_text for prompt in prompts],
        references=[prompt.images for prompt in prompts],
        subjects=[prompt.subject for prompt in prompts],
        group_ids=rollout.group_ids,
        metadata=[prompt.meta for prompt in prompts],
        step=step,
    )
