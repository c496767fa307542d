"""The plan of a recipe: memory of one GPU under each launch file, and the time of the whole run.

Formulas and what they take for granted: policy.py (parameters), hardware.py (cards, bytes per parameter), memory.py,
compute.py (FLOPs), supervised.py and grpo.py (the calls of a step).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mentor_rl.plan.calls import PICTURES, Machine, Step
from mentor_rl.plan.compute import GUIDE_TOKENS
from mentor_rl.plan.grpo import BANDWIDTH_SHARE, grpo_step
from mentor_rl.plan.hardware import CARDS, GIB, HEADROOM, LAUNCHES, Launch, fits
from mentor_rl.plan.memory import States, Work, states_of
from mentor_rl.plan.policy import PolicyFacts, captioner_parameters
from mentor_rl.plan.supervised import projector_step, sft_step
from mentor_rl.recipe import GrpoRecipe, SftRecipe

WIDE = 512  # of the decoder; kernels of narrower ones are done before the next one is launched


@dataclass(frozen=True)
class Way:
    """One way to launch; bytes on each GPU."""

    launch: Launch
    checkpointing: bool
    states: States
    work: Work

    @property
    def peak(self) -> float:
        return self.states.total + self.work.peak

    def fits(self, card: float) -> bool:
        """On a card of so many GB, with HEADROOM left."""
        return fits(self.peak / GIB, card)


@dataclass(frozen=True)
class Plan:
    """Attributes:
    parameters: per part.
    trained: trained parameters per part that trains.
    checkpointing: what ``step`` counts FLOPs with.
    ways: the launch files in the order of preference, without checkpointing first.
    """

    kind: str
    size: str
    precision: str
    machine: Machine
    parameters: dict[str, int]
    trained: dict[str, int]
    checkpointing: bool
    ways: tuple[Way, ...]
    step: Step
    steps: int | None
    assumptions: tuple[str, ...]

    @property
    def step_seconds(self) -> float:
        return sum(self.step.seconds.values())

    @property
    def hours(self) -> float | None:
        """None where the number of steps is not known."""
        return None if self.steps is None else self.steps * self.step_seconds / 3600

    def best(self, card: float) -> Way | None:
        """The first way that fits a card of so many GB."""
        return next((way for way in self.ways if way.fits(card)), None)


def make_plan(
    recipe: SftRecipe | GrpoRecipe,
    facts: PolicyFacts,
    machine: Machine,
    steps: int | None,
    checkpointing: bool | None = None,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Estimate a recipe of so many ``steps`` (None: not known).

    ``checkpointing`` None: as the recipe says, with both ways of launching listed.

    Raises:
        UserError: numbers that do not divide over the GPUs.
    """
    optimisation = recipe.optimisation
    counted = optimisation.gradient_checkpointing if checkpointing is None else checkpointing
    with_reference, captioner = False, 0
    if isinstance(recipe, GrpoRecipe):
        step, with_reference = grpo_step(recipe, facts, machine, counted), recipe.algorithm.beta > 0
    elif recipe.stage.name == "projector":
        step, captioner = projector_step(recipe, facts, machine, counted), captioner_parameters(facts.config)
    else:
        step = sft_step(recipe, facts, machine, counted)
    precision = optimisation.precision
    ways = [
        Way(
            launch,
            saving,
            states_of(facts, launch, precision, machine.gpus, with_reference, captioner),
            step.work[saving],
        )
        for saving in ((False, True) if checkpointing is None else (checkpointing,))
        for launch in LAUNCHES
    ]
    return Plan(
        kind=recipe.kind,
        size=facts.config.size,
        precision=precision,
        machine=machine,
        parameters=facts.parameters,
        trained=facts.trained_parts,
        checkpointing=counted,
        ways=tuple(ways),
        step=step,
        steps=steps,
        assumptions=(*notes, *assumptions(recipe, facts, machine)),
    )


def assumptions(recipe: SftRecipe | GrpoRecipe, facts: PolicyFacts, machine: Machine) -> list[str]:
    """What the numbers take for granted, a line each."""
    config, card, precision = facts.config, machine.card, recipe.optimisation.precision
    peak = card.bf16 if precision == "bf16" else card.float32
    weights = recipe.prompts.weights if isinstance(recipe, GrpoRecipe) else recipe.stage.mixture.weights
    many = [task for task in weights if PICTURES[task] is None]
    lines = [
        f"{machine.gpu}: {peak:g} TFLOP/s dense {precision}, {card.memory} GB; {machine.utilisation:.0%} of the peak",
        f"a way fits where it leaves {HEADROOM:.0%} of a card for context, workspaces and fragments",
        f"prompts of {machine.text_tokens} text tokens and {config.picture_slots} slots a picture, at most "
        f"{config.context_length}; memory counts nothing but the mixture's longest prompts, time its mean",
        "activations: fused attention; T5 holds its relative positions per head and prompt; norms in float32",
        "validation, saving, data loading and communication take no time",
    ]
    if config.hidden_size < WIDE:
        lines.append("a policy this small does not keep such a card busy: hours are what arithmetic alone takes")
    if many:
        lines.append(f"{', '.join(many)}: as many pictures as the context holds")
    if facts.train.lora is not None:
        lines.append("adapters' own products and activations are left out: a few percent")
    if config.connector == "query":
        lines.append(f"guiding texts of {GUIDE_TOKENS} tokens")
    if precision == "bf16":
        lines.append(
            "bf16: ddp and fsdp2 keep float32 parameters (frozen ones too) and gradients under autocast; zero2 and "
            "zero3 keep bf16 ones, and float32 masters in the optimizer's share"
        )
    if isinstance(recipe, GrpoRecipe):
        lines += [
            f"a rollout moves decoder and cache at each token, at {BANDWIDTH_SHARE:.0%} of {card.bandwidth:g} GB/s",
            "rewards take no time and no memory of these GPUs",
            "zero3 and fsdp2 gather weights for rollouts; that memory and time are not counted",
        ]
    elif recipe.stage.name == "projector":
        lines.append("the captioner is a T5 decoder of the text encoder's sizes, whole on each GPU")
    else:
        lines.append("targets are encoded in each step; with cached codes phase 'targets' and its memory are gone")
    return lines


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: bytes, FLOPs, seconds."""
    machine = plan.machine
    return {
        "kind": plan.kind,
        "size": plan.size,
        "precision": plan.precision,
        "machine": vars(machine),
        "parameters": {
            "total": sum(plan.parameters.values()),
            "trained": sum(plan.trained.values()),
            "parts": plan.parameters,
            "trained_parts": plan.trained,
        },
        "micro_batch": plan.step.micro_batch,
        "checkpointing": plan.checkpointing,
        "memory": [
            {
                "launch": way.launch.file,
                "checkpointing": way.checkpointing,
                **vars(way.states),
                **vars(way.work),
                "peak": way.peak,
                "fits_gb": [card for card in CARDS if way.fits(card)],
            }
            for way in plan.ways
        ],
        "step": {
            "image_tokens": plan.step.image_tokens,
            "prefix_slots": plan.step.prefix_slots,
            "flops": plan.step.flops,
            "seconds": plan.step.seconds,
        },
        "steps": plan.steps,
        "hours": plan.hours,
        "assumptions": list(plan.assumptions),
    }
