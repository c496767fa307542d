"""A step of GRPO in AR-GRPO's way of working, re-created so that it can be timed beside ours on the same weights.

Written from the facts about its repository (commit 65947ad, August 2025), not from its text. It draws the pictures that
our trainer draws, scores them with the same rewards and takes the same step; what makes it slow is its own:

- rollouts by LlamaGen's sampler (generate.py): see reference_sampler.py; the prompt of each picture is encoded for
  itself, and float32 numbers of all codes at all places are kept to the end of the step, for logging
  (modified_grpo_trainer.py:1416);
- prompts are padded to the decoder's context (120 slots in LlamaGen, 512 in MENTOR) and never trimmed, where
  ``padded_to`` says so;
- rewards are called with one picture at a time;
- log-probs from a pass over prefix and picture of each sample, with a mask per sample and float32 logits at every
  place, those of the prefix too, held as one block (modeling.py:284-308); no prefix is shared, no block is chunked;
- the reference is a second copy that does all of this again.

Left out, all in its favour: a synchronisation per token (modified_grpo_trainer.py:1194), ``torch.multinomial``, and
printing. It optimises the conditional log-prob whatever the guidance of its rollouts (rule 1 of the house is about
that): a fair comparison runs ours with ``guidance.logprob: conditional``.

Shapes: N pictures of a step, R rows of a pass, T prefix slots, L image tokens, I = T + L - 1 inputs, V codes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from mentor_rewards.aggregate import advantages
from mentor_rewards.composite import Composite
from torch.nn import functional as F

from mentor_base.data.schema import Prompt
from mentor_base.decoder import Decoder
from mentor_base.errors import UserError
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.prefix import Prefix
from mentor_base.processor import MentorProcessor
from mentor_base.sft import schedule, set_trained_parts
from mentor_rl.bench.reference_sampler import (
    ReferenceSampler,
    block_output,
    captions_of,
    logits_of,
    materialised_mask,
    reference_draw,
    rotations,
)
from mentor_rl.grpo_setup import silence_dropout
from mentor_rl.objective import grpo_loss
from mentor_rl.recipe import GrpoRecipe
from mentor_rl.rollout import TRAINING_STREAM, Rollout, reward_batch, uniforms


@dataclass(frozen=True)
class ArGrpoFound:
    """What a step came to.

    Attributes:
        gradient: norm, before it is clipped.
        seconds: by phase, in the names of our trainer's log.
    """

    tokens_NL: torch.Tensor
    loss: float
    gradient: float
    seconds: dict[str, float]


class ArGrpoStep:
    """Steps on a policy of its own.

    Args:
        policy, reference: loaded alike; the first is trained.
        composite: loaded rewards.
        recipe: of which the objective, the optimizer and the trained parts are taken.
        padded_to: prefix slots of every prompt; None: as many as the longest of the step has.
    """

    def __init__(
        self,
        policy: MentorForConditionalGeneration,
        reference: MentorForConditionalGeneration,
        processor: MentorProcessor,
        composite: Composite,
        recipe: GrpoRecipe,
        padded_to: int | None = None,
    ) -> None:
        self.policy, self.reference, self.processor = policy, reference, processor
        self.composite, self.recipe, self.padded_to = composite, recipe, padded_to
        set_trained_parts(policy, recipe.train, recipe.seed)
        silence_dropout(policy)
        self.trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        settings = recipe.optimisation
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def take(self, prompts_N: Sequence[Prompt], uids_N: Sequence[int], step: int) -> ArGrpoFound:
        """Step ``step`` (from 0) on these prompts, each repeated for its group."""
        seconds: dict[str, float] = {}
        began = time.perf_counter()
        prefix, rollout, kept = self._roll_out(prompts_N, uids_N)
        seconds["rollout"] = time.perf_counter() - began
        began = time.perf_counter()
        advantages_N = self._advantages(rollout, step)
        seconds["reward"] = time.perf_counter() - began
        began = time.perf_counter()
        with torch.no_grad():
            reference_NL = self._logprobs(self.reference.decoder, prefix, rollout.tokens_NL)
        seconds["reference"] = time.perf_counter() - began
        began = time.perf_counter()
        loss, gradient = self._update(prefix, rollout.tokens_NL, reference_NL, advantages_N, step)
        seconds["update"] = time.perf_counter() - began
        del kept  # until here, for its log
        return ArGrpoFound(rollout.tokens_NL, loss, gradient, seconds)

    @torch.no_grad()
    def _roll_out(
        self, prompts_N: Sequence[Prompt], uids_N: Sequence[int]
    ) -> tuple[Prefix, Rollout, list[torch.Tensor]]:
        algorithm, length = self.recipe.algorithm, self.policy.config.image_tokens
        members_N = [row % algorithm.group_size for row in range(len(uids_N))]
        prefix: Prefix = self.policy(mode="encode", **self.processor(list(prompts_N)))
        if self.padded_to is not None:
            longest = prefix.mask_KT.shape[1]
            if longest > self.padded_to:
                raise UserError(
                    f"--padded-to: expected at least the longest prompt's {longest}, found {self.padded_to}"
                )
            prefix = prefix.padded(self.padded_to)
        noise_NL = uniforms(uids_N, members_N, length, self.recipe.seed, TRAINING_STREAM)
        sampler = ReferenceSampler(self.policy.decoder, algorithm.guidance.constant or 1.0, noise_NL)
        tokens_NL = reference_draw(sampler, prefix, length)
        images = self.policy.decode_images(tokens_NL)
        nothing = torch.empty(len(tokens_NL), 0)
        return prefix, Rollout(tuple(prompts_N), tuple(uids_N), tokens_NL, nothing, images), sampler.probabilities

    def _advantages(self, rollout: Rollout, step: int) -> torch.Tensor:
        """Advantages_N from rewards that are called with one picture after the other."""
        parts = []
        for row in range(len(rollout)):
            one = slice(row, row + 1)
            tokens = rollout.tokens_NL[one]
            alone = Rollout(rollout.prompts[one], rollout.group_ids[one], tokens, tokens, rollout.images[one])
            parts.append(self.composite.score(reward_batch(alone, step), tolerate=True))
        scores, algorithm = self.composite.join(parts), self.recipe.algorithm
        given = (scores.matrix(), self.composite.weights, rollout.group_ids)
        return torch.from_numpy(advantages(*given, algorithm.aggregation, algorithm.scale_rewards)).float()

    def _logprobs(self, decoder: Decoder, prefix: Prefix, tokens_NL: torch.Tensor) -> torch.Tensor:
        """Conditional log-probs, ``micro_batch`` samples at a time."""
        size = self.recipe.algorithm.micro_batch or len(tokens_NL)
        rows = [slice(start, start + size) for start in range(0, len(tokens_NL), size)]
        return torch.cat([conditional_logprobs(decoder, prefix.rows(part), tokens_NL[part]) for part in rows])

    def _update(
        self,
        prefix: Prefix,
        tokens_NL: torch.Tensor,
        reference_NL: torch.Tensor,
        advantages_N: torch.Tensor,
        step: int,
    ) -> tuple[float, float]:
        """Loss, and norm of its gradient."""
        algorithm, optimisation = self.recipe.algorithm, self.recipe.optimisation
        size, total = algorithm.micro_batch or len(tokens_NL), 0.0
        for start in range(0, len(tokens_NL), size):
            part = slice(start, start + size)
            logp_RL = conditional_logprobs(self.policy.decoder, prefix.rows(part), tokens_NL[part])
            given = (logp_RL, logp_RL.detach(), reference_NL[part], advantages_N[part])
            loss = grpo_loss(*given, algorithm).loss * len(logp_RL) / len(tokens_NL)
            loss.backward()
            total += loss.item()
        gradient = torch.nn.utils.clip_grad_norm_(self.trained, optimisation.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = optimisation.lr * schedule(optimisation, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, gradient.item()


def conditional_logprobs(decoder: Decoder, prefix: Prefix, tokens_RL: torch.Tensor) -> torch.Tensor:
    """Log-probs_RL from logits_RIV of all inputs, as one block."""
    slots = prefix.mask_KT.shape[1]
    inputs_RLD = F.embedding(tokens_RL[:, :-1], decoder.embedding.weight)
    x_RID = torch.cat([captions_of(decoder, prefix.features_KTC), inputs_RLD], dim=1)
    mask = materialised_mask(prefix.mask_KT, x_RID.shape[1])[:, None]
    turns_I = rotations(decoder, slots)[: x_RID.shape[1]]
    attend = partial(F.scaled_dot_product_attention, attn_mask=mask)
    for block in decoder.blocks:
        x_RID = block_output(block, x_RID, turns_I, attend)
    logits_RLV = logits_of(decoder, x_RID)[:, slots - 1 :]
    chosen_RL = logits_RLV.gather(-1, tokens_RL[:, :, None])[:, :, 0]
    return chosen_RL - logits_RLV.logsumexp(-1)
