"""A supervised step: ``batch`` examples, a prompt per image.

The tokenizer encodes the targets, the encoder runs with every example. In a projector stage neither tokenizer nor image
decoder runs: each example is a bare picture, and a frozen T5 decoder of the text encoder's sizes writes its caption.
"""

from __future__ import annotations

from mentor_base.batch_split import split_batch
from mentor_rl.plan.calls import Machine, PromptShape, Step, add, longest, mean_slots, prompt_shapes
from mentor_rl.plan.compute import captioning_flops, update_flops
from mentor_rl.plan.memory import Work, captioning_work, tokenizer_work, update_work
from mentor_rl.plan.policy import PolicyFacts
from mentor_rl.recipe import SftRecipe


def sft_step(recipe: SftRecipe, facts: PolicyFacts, machine: Machine, checkpointing: bool) -> Step:
    """A supervised step."""
    batch, micro = recipe.optimisation.batch, split_batch(recipe.optimisation, machine.gpus).micro
    precision = recipe.optimisation.precision
    shapes = prompt_shapes(recipe.stage.mixture.weights, facts.config, machine.text_tokens)
    flops = {"targets": float(batch * facts.encode_flops)}
    for shape in shapes:
        add(flops, update_flops(facts, shape.call(batch, batch), checkpointing, with_encoder=True, micro=micro))
    call = longest(shapes).call(micro, micro)
    work = {
        saving: Work(
            *update_work(facts, call, precision, saving, with_encoder=True),
            kv_cache=0.0,
            tokenizer=tokenizer_work(facts.config, micro, decoding=False),
        )
        for saving in (False, True)
    }
    return Step(
        micro_batch=micro,
        image_tokens=batch * facts.config.image_tokens,
        prefix_slots=mean_slots(shapes, batch),
        work=work,
        flops=flops,
        seconds={phase: machine.seconds(number, precision) for phase, number in flops.items()},
    )


def projector_step(recipe: SftRecipe, facts: PolicyFacts, machine: Machine, checkpointing: bool) -> Step:
    """A step that trains the connector to say pictures to T5; captions have ``machine.text_tokens`` tokens."""
    batch, micro = recipe.optimisation.batch, split_batch(recipe.optimisation, machine.gpus).micro
    precision, words = recipe.optimisation.precision, machine.text_tokens
    shape = PromptShape(1.0, facts.config.picture_slots + 1, 1)
    flops = captioning_flops(facts, shape.call(batch, batch), words, checkpointing)
    call = shape.call(micro, micro)
    return Step(
        micro_batch=micro,
        image_tokens=0,
        prefix_slots=batch * shape.slots,
        work={
            saving: Work(*captioning_work(facts, call, words, precision, saving), kv_cache=0.0, tokenizer=0.0)
            for saving in (False, True)
        },
        flops=flops,
        seconds={phase: machine.seconds(number, precision) for phase, number in flops.items()},
    )
