"""How policy and reference are called, while sampling and while scoring: in one distribution (house rule 1).

Guidance scales, temperature, precision and conditioning of both come from here. Free of trl.

Shapes: N samples of a pass, L image tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from mentor_base.guidance import EntropyMode
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.settings import Sampling
from mentor_rl.algorithm import GrpoAlgorithm
from mentor_rl.rollout import POLICY, Groups, PromptStore, guidance_scales


class PolicyPasses:
    """Passes of policy and reference over samples, which are given by the uids of their prompts.

    Args:
        algorithm: guidance, temperature, precision of the sampler.
        store: the prompts.
        seed: of the run, for guidance scales of prompts.
        autocast: the precision of updates, as a context.

    Attributes:
        sampling: temperature, and the guidance scale where all prompts share one.
        same_distribution: whether what is scored is what is sampled. Warns when it is not.
    """

    def __init__(
        self,
        algorithm: GrpoAlgorithm,
        store: PromptStore,
        seed: int,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.algorithm, self.store, self.seed, self.autocast = algorithm, store, seed, autocast
        guidance = algorithm.guidance
        self.sampling = Sampling(temperature=algorithm.temperature, guidance_scale=guidance.constant or 1.0)
        self.same_distribution = guidance.logprob == "guided" or not guidance.guided
        if not self.same_distribution:
            warnings.warn(
                f"guidance.logprob 'conditional' at scale {guidance.scale}: the log-probs that are optimised "
                "are not those of the distribution that is sampled",
                stacklevel=3,
            )

    @property
    def amplified(self) -> float:
        """By how much guidance and temperature scale up rounding of logits; at least 1."""
        return max(1.0, self.algorithm.guidance.largest) / min(1.0, self.algorithm.temperature)

    def scales(self, uids: Sequence[int], seed: int | None = None) -> torch.Tensor | None:
        """Guidance scales_N, where prompts have each their own; ``seed``: default that of the run."""
        scale = self.algorithm.guidance.scale
        return guidance_scales(scale, uids, self.seed if seed is None else seed) if isinstance(scale, tuple) else None

    @contextmanager
    def sampler_autocast(self, policy: MentorForConditionalGeneration, uids: Sequence[int]) -> Iterator[None]:
        """The precision of rollouts. Prefixes that the training pass will read too are made in its own before."""
        device, dtype = next(policy.parameters()).device, self.algorithm.sampler_dtype
        self.read(policy, uids, device, POLICY)
        with self.autocast() if dtype is None else torch.autocast(device.type, getattr(torch, dtype)):
            yield

    def read(self, model: torch.nn.Module, uids: Sequence[int], device: torch.device, owner: str) -> None:
        """Make the prefixes that can be kept in one batch: the same ones for rollouts and passes in parts, and by one
        call on each process, as one whose weights are dealt out needs it.
        """
        with self.autocast():
            self.store.read(model, sorted(set(uids)), device, owner)

    def logprobs(
        self, model: torch.nn.Module, uids: Sequence[int], tokens_NL: torch.Tensor, owner: str, entropy: EntropyMode
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies [N, L] of tokens, in the order given.

        Args:
            model: policy or reference, wrapped or not.
            owner: whose prefixes are read; see PromptStore.
        """
        groups, device = Groups.of(uids), tokens_NL.device
        order_N, inverse_N = groups.order_N.to(device), groups.inverse_N.to(device)
        scales_N = self.scales(uids)
        with self.autocast():
            found = model(
                mode="logprobs",
                tokens=tokens_NL[order_N],
                group_size=groups.size,
                sampling=self.sampling,
                logprob=self.algorithm.guidance.logprob,
                entropy=entropy,
                scales=None if scales_N is None else scales_N.to(device)[order_N],
                **self.store.condition(model, groups.uids, device, owner),
            )
        return found.logp_NL[inverse_N], found.entropy_NL[inverse_N]
