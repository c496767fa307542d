"""From the finished runs of an ablation to its outcome: values over seeds, paired changes from the reference.

Two panels: the benchmark's metrics, all splits together; and every reward, trained or held out, on the fixed unseen
prompts after the last step of the last GRPO stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mentor_rl.ablation.arms import UNTUNED, Arm
from mentor_rl.ablation.jobs import BENCHMARK as BENCHMARK_STEP
from mentor_rl.ablation.jobs import ArmSeed, Job, Plan
from mentor_rl.ablation.outcome import BENCHMARK, REWARDS, ArmOutcome, Cell, Outcome
from mentor_rl.evaluate.fixed_scores import fixed_scores
from mentor_rl.evaluate.paired import (
    Scores,
    averaged,
    change,
    over_training_seeds,
    policies_of,
    scores_of,
    verdict,
)
from mentor_rl.evaluate.result import Result
from mentor_rl.recipe import GrpoRecipe

BySeed = dict[int, Scores]


def outcome_of(plan: Plan) -> Outcome:
    """What the finished runs say; unfinished ones are named."""
    results = {key: Result.read(job.result) for key, job in _benchmarks(plan).items() if job.finished}
    benchmark = {key: scores for key, result in results.items() if (scores := _scores(result)) is not None}
    rewards = {key: fixed_scores(job.folder)[1] for key, job in _tuned(plan).items() if job.finished}
    first = _tuned(plan).get((plan.reference, plan.recipe.seeds[0]))
    if plan.recipe.untuned and first is not None and first.finished and not first.after:  # its step 0 is the start
        rewards[UNTUNED, plan.recipe.seeds[0]] = fixed_scores(first.folder, step=0)[1]
    panels = {BENCHMARK: _of_arms(plan, benchmark), REWARDS: _of_arms(plan, rewards)}
    changes = {arm.name: arm for arm in plan.arms}
    arms = {}
    for name in plan.arm_names:
        cells = {panel: _cells(name, plan.reference, each) for panel, each in panels.items()}
        seeds = tuple(seed for seed in plan.recipe.seeds if (name, seed) in results)
        folders = _folders(plan, name, benchmark=False), _folders(plan, name, benchmark=True)
        arms[name] = ArmOutcome(_changes(changes.get(name)), _trained(plan, name), seeds, cells, *folders)
    missing = tuple(job.name for job in plan.jobs.values() if not job.finished)
    facts = _facts(plan, list(results.values()))
    return Outcome(plan.folder.name, plan.recipe.about, plan.reference, plan.recipe.seeds, arms, missing, facts)


def _benchmarks(plan: Plan) -> dict[ArmSeed, Job]:
    return {key: plan.jobs[steps[BENCHMARK_STEP]] for key, steps in plan.members.items()}


def _tuned(plan: Plan) -> dict[ArmSeed, Job]:
    """The last GRPO run of each arm and seed that has one."""
    found = {}
    for key, steps in plan.members.items():
        for name in steps.values():
            if isinstance(plan.jobs[name].recipe, GrpoRecipe):
                found[key] = plan.jobs[name]
    return found


def _folders(plan: Plan, arm: str, benchmark: bool) -> dict[str, str]:
    """Seed -> run folder of the arm's benchmark, or of its last stage, where it is finished."""
    found = {}
    for seed in plan.recipe.seeds:
        steps = plan.members.get((arm, seed), {})
        jobs = [plan.jobs[name] for step, name in steps.items() if (step == BENCHMARK_STEP) == benchmark]
        if jobs and jobs[-1].finished:
            found[str(seed)] = str(jobs[-1].folder.relative_to(plan.folder))
    return found


def _scores(result: Result) -> Scores | None:
    """Those of the arm's policy: a benchmark here measures one."""
    return scores_of(result, policies_of(result)[0])


def _of_arms(plan: Plan, scores: Mapping[ArmSeed, Scores]) -> dict[str, BySeed]:
    found: dict[str, BySeed] = {name: {} for name in plan.arm_names}
    for (arm, seed), each in scores.items():
        found[arm][seed] = each
    return found


def _cells(arm: str, reference: str, scores: Mapping[str, BySeed]) -> dict[str, Cell]:
    own = scores[arm]
    if not own:
        return {}
    names = next(iter(own.values())).metrics()
    others = {} if arm == reference else scores[reference]
    return {name: _cell(name, own, others, by_seed=arm != UNTUNED) for name in names}


def _cell(metric: str, own: BySeed, reference: BySeed, by_seed: bool) -> Cell:
    per_seed = {seed: scores.value(metric) for seed, scores in own.items()}
    finite = [value for value in per_seed.values() if math.isfinite(value)]
    value = sum(finite) / len(finite) if finite else math.nan
    named = {str(seed): each for seed, each in per_seed.items()}
    cell = Cell(value, named, _interval(metric, own))
    first, second = ([seed for seed, scores in side.items() if metric in scores.metrics()] for side in (reference, own))
    if by_seed:  # what is not tuned has no training seed: it is compared with the mean of all, and with each
        first = second = [seed for seed in first if seed in second]
    if not first or not second:
        return cell
    changed = change(averaged([reference[seed] for seed in first]), averaged([own[seed] for seed in second]), metric)
    pairs = zip(first, second if by_seed else second * len(first), strict=True)
    over_seeds = over_training_seeds([own[b].value(metric) - reference[a].value(metric) for a, b in pairs])
    difference, relative = changed if changed is not None else (None, None)
    said = verdict(difference, over_seeds)
    return replace(cell, change=difference, relative=relative, over_seeds=over_seeds, verdict=said)


def _interval(metric: str, own: BySeed) -> list[float] | None:
    """Over seeds; with one seed over its items."""
    several = len(own) > 1
    found = over_training_seeds([scores.value(metric) for scores in own.values()]) if several else None
    found = found if several else next(iter(own.values())).estimate(metric)
    return None if found is None else found[1:]


def _trained(plan: Plan, arm: str) -> tuple[str, ...]:
    job = _tuned(plan).get((arm, plan.recipe.seeds[0]))
    if job is None or not isinstance(job.recipe, GrpoRecipe):
        return ()
    return tuple(name for name, entry in job.recipe.rewards.items() if entry.role == "train")


def _changes(arm: Arm | None) -> dict[str, Any]:
    return {} if arm is None else dict(arm.changes)


def _facts(plan: Plan, results: Sequence[Result]) -> dict[str, Any]:
    if not results:
        return {}
    first = results[0]
    found = {"benchmark": first.benchmark, "judge": first.judge, "stand_in": first.stand_in}
    found |= {"pictures": first.coverage.get("items"), "published": plan.recipe.published}
    gaps = (each.coverage.get("items", 0) - each.coverage.get("scored", 0) for each in results)
    found |= {"pictures without a score": sum(gaps) or None}
    return {**found, "sampling seeds": ", ".join(map(str, first.seeds))} if plan.recipe.stages else found
