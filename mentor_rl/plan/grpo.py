"""A GRPO step: ``group_size x prompts_per_step`` pictures.

They are drawn once per ``inner_iterations`` steps, the reference scores them, with several iterations the policy too,
and each step updates on all of them. Prefixes are shared by the pictures of a prompt where one micro-batch holds all
pictures of its process; else each picture has its own, since trl shuffles. A frozen encoder runs once per rollout.

Drawing a token moves all weights of the decoder and the cache, so a rollout takes its FLOPs' time or what
BANDWIDTH_SHARE of the card's bandwidth allows, whichever is longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mentor_base.config import MentorConfig
from mentor_rl.grpo_setup import pictures_per_process
from mentor_rl.plan.calls import Machine, PromptShape, Step, add, longest, mean_slots, prompt_shapes
from mentor_rl.plan.compute import encoder_flops, rollout_flops, scoring_flops, update_flops
from mentor_rl.plan.memory import Work, sampling_cache, tokenizer_work, update_work
from mentor_rl.plan.policy import Pass, PolicyFacts, gradient_reaches
from mentor_rl.recipe import GrpoRecipe

BANDWIDTH_SHARE = 0.5  # of a card's bandwidth that decoding reaches


@dataclass(frozen=True)
class GrpoCalls:
    """The calls of a GRPO step over all GPUs, from the recipe's numbers.

    Attributes:
        local, micro: pictures of a process, and of one of its update passes.
        local_prompts: prompts of a process.
        sampled, scored: halves in rollouts and in log-probs.
        encoder: whether the encoder is trained, and so runs with each update.
    """

    gpus: int
    local: int
    micro: int
    local_prompts: int
    sampled: int
    scored: int
    encoder: bool
    shapes: list[PromptShape]

    @classmethod
    def of(cls, recipe: GrpoRecipe, config: MentorConfig, machine: Machine) -> GrpoCalls:
        algorithm, guidance = recipe.algorithm, recipe.algorithm.guidance
        local = pictures_per_process(recipe, machine.gpus)
        sampled = 2 if guidance.guided else 1
        return cls(
            gpus=machine.gpus,
            local=local,
            micro=algorithm.micro_batch or local,
            local_prompts=math.ceil(local / algorithm.group_size),
            sampled=sampled,
            scored=sampled if guidance.logprob == "guided" else 1,
            encoder=gradient_reaches(recipe.train, "text_encoder"),
            shapes=prompt_shapes(recipe.prompts.weights, config, machine.text_tokens),
        )

    @property
    def images(self) -> int:
        return self.local * self.gpus

    @property
    def prompts(self) -> int:
        return self.local_prompts * self.gpus

    def prefixes(self, images: int, prompts: int) -> int:
        """How many prefixes log-probs of these pictures need."""
        return prompts if self.micro == self.local else images

    def rollout(self, shape: PromptShape) -> Pass:
        return shape.call(self.prompts, self.images, self.sampled)

    def scoring(self, shape: PromptShape) -> Pass:
        return shape.call(self.prefixes(self.images, self.prompts), self.images, self.scored)


def grpo_step(recipe: GrpoRecipe, facts: PolicyFacts, machine: Machine, checkpointing: bool) -> Step:
    """A GRPO step; what happens once per rollout is shared out over its iterations."""
    calls, precision = GrpoCalls.of(recipe, facts.config, machine), recipe.optimisation.precision
    algorithm, once = recipe.algorithm, 1 / recipe.algorithm.inner_iterations
    flops = {"pixels": once * calls.images * facts.decode_flops}
    for shape in calls.shapes:
        drawn, scored = calls.rollout(shape), calls.scoring(shape)
        add(flops, {"rollout": once * rollout_flops(facts, drawn)})
        if algorithm.beta > 0:
            reference = scoring_flops(facts, scored, with_encoder=False) + encoder_flops(facts, drawn)
            add(flops, {"reference": once * reference})
        if algorithm.inner_iterations > 1 or algorithm.importance is not None:
            add(flops, {"old log-probs": once * scoring_flops(facts, scored, calls.encoder)})
        add(flops, update_flops(facts, scored, checkpointing, calls.encoder, calls.micro))
    seconds = {phase: machine.seconds(number, precision) for phase, number in flops.items()}
    moved = once * decoding_bytes(facts, calls, precision) / (1e9 * machine.card.bandwidth * BANDWIDTH_SHARE)
    seconds["rollout"] = max(seconds["rollout"], moved)
    return Step(
        micro_batch=calls.micro,
        image_tokens=calls.images * facts.config.image_tokens,
        prefix_slots=mean_slots(calls.shapes, calls.prompts),
        work={saving: _grpo_work(facts, calls, precision, saving) for saving in (False, True)},
        flops=flops,
        seconds=seconds,
    )


def decoding_bytes(facts: PolicyFacts, calls: GrpoCalls, precision: str) -> float:
    """Bytes that one GPU moves to draw its pictures: the decoder at each token, and half of the cache on average."""
    config, operand = facts.config, 2 if precision == "bf16" else 4
    slots = calls.local_prompts * mean_slots(calls.shapes, 1) + calls.local * config.image_tokens / 2
    cache = config.num_hidden_layers * 2 * config.hidden_size * slots * calls.sampled
    return config.image_tokens * operand * (facts.parameters["decoder"] + cache)


def _grpo_work(facts: PolicyFacts, calls: GrpoCalls, precision: str, checkpointing: bool) -> Work:
    shape = longest(calls.shapes)
    update = shape.call(calls.prefixes(calls.micro, calls.local_prompts), calls.micro, calls.scored)
    drawn = shape.call(calls.local_prompts, calls.local, calls.sampled)
    return Work(
        *update_work(facts, update, precision, checkpointing, calls.encoder),
        kv_cache=sampling_cache(facts.config, drawn, precision),
        tokenizer=tokenizer_work(facts.config, calls.local, decoding=True),
    )
