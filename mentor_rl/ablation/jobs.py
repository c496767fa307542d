"""From an ablation's recipe to its jobs: one training or benchmark run each, with its own recipe file and run folder.

    RUN/arms/without_style/seed0/grpo.yaml    what `mentor train` is given
    RUN/arms/without_style/seed0/grpo/        the run folder
    RUN/arms/without_style/seed0/grpo.log     what the run printed

A stage that two arms have in common, with the same seed and the same stages before it, is one job: it lies in the
folder of the first arm that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import iglob
from pathlib import Path
from typing import Any, Literal

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.ablation.arms import FULL, NAME, POLICY, UNTUNED, Arm, arms_of
from mentor_rl.ablation.recipe import AblateRecipe, AblationStep
from mentor_rl.evaluate.recipes import EvaluateRecipe
from mentor_rl.recipe import GrpoRecipe, Recipe, SftRecipe
from mentor_rl.recipe_files import PLUGIN_FILE, input_paths, load_recipe, resolved
from mentor_rl.recipe_names import check_names

BENCHMARK = "benchmark"
Stage = SftRecipe | GrpoRecipe
ArmSeed = tuple[str, int]  # arm's name, seed


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: its folder below RUN/arms, e.g. "full/seed0/grpo"; unique.
        step: the stage, or "benchmark".
        folder: the run folder.
        recipe: what it runs, resolved.
        after: names of jobs that have to be finished first.
    """

    name: str
    step: str
    folder: Path
    recipe: Recipe
    after: tuple[str, ...]

    @property
    def command(self) -> Literal["train", "evaluate"]:
        return "evaluate" if isinstance(self.recipe, EvaluateRecipe) else "train"

    @property
    def file(self) -> Path:
        return self.folder.with_name(f"{self.step}.yaml")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.step}.log")

    @property
    def result(self) -> Path:
        """A benchmark's JSON."""
        assert isinstance(self.recipe, EvaluateRecipe)
        return self.folder / "results" / f"{self.recipe.benchmark}.json"

    @property
    def finished(self) -> bool:
        return self.result.exists() if self.command == "evaluate" else RunFolder(self.folder).finished


@dataclass(frozen=True)
class Plan:
    """All jobs of an ablation, in the order in which they are best run: seed by seed, so that a stopped ablation has
    whole seeds to show.

    Attributes:
        members: (arm, seed) -> step -> name of the job; ``untuned`` has a benchmark alone.
    """

    recipe: AblateRecipe
    arms: tuple[Arm, ...]
    jobs: Mapping[str, Job]
    members: Mapping[ArmSeed, Mapping[str, str]]

    @property
    def folder(self) -> Path:
        return Path(self.recipe.run)

    @property
    def reference(self) -> str:
        return self.recipe.reference or FULL

    @cached_property
    def arm_names(self) -> tuple[str, ...]:
        """The order of tables: that of the recipe, ``untuned`` after the reference."""
        names = [arm.name for arm in self.arms]
        if self.recipe.untuned:
            names.insert(names.index(self.reference) + 1, UNTUNED)
        return tuple(names)


def plan_jobs(path: Path, recipe: AblateRecipe, *, need_inputs: bool) -> Plan:
    """All jobs of ``recipe``, which was read from ``path``.

    Raises:
        UserError: see arms_of; a stage or benchmark of another kind; two arms that are the same runs; missing inputs.
    """
    return _Planner(path, recipe, need_inputs).plan()


class _Planner:
    def __init__(self, path: Path, recipe: AblateRecipe, need_inputs: bool) -> None:
        self.path, self.recipe, self.need_inputs = path, recipe, need_inputs
        self.steps: dict[str, AblationStep] = {**recipe.stages, BENCHMARK: recipe.benchmark}
        self.bases: dict[str, Recipe] = {}  # what all arms share
        self.jobs: dict[str, Job] = {}
        self.known: dict[str, str] = {}  # what a job does -> its name
        self.members: dict[ArmSeed, dict[str, str]] = {}

    def plan(self) -> Plan:
        for step in self.recipe.stages:
            if not NAME.fullmatch(step) or "." in step or step == POLICY:
                raise UserError(f"{self.path}: stages.{step}: expected a name of letters, digits and _, not '{POLICY}'")
        self.bases = {step: self._base(step) for step in self.steps}
        arms = arms_of(self.recipe, self.bases, str(self.path))
        reference = self.recipe.reference or FULL
        for seed in self.recipe.seeds:
            for arm in arms:
                self._arm(arm, seed)
                if self.recipe.untuned and arm.name == reference and seed == self.recipe.seeds[0]:
                    self._untuned(arm, seed)
        self._check_different(arms)
        self._check_inputs()
        return Plan(self.recipe, arms, self.jobs, self.members)

    def _base(self, step: str) -> Recipe:
        base = self._load(step, self.steps[step].overrides, f"{self.path}: {self._section(step)}")
        expected = (EvaluateRecipe,) if step == BENCHMARK else (SftRecipe, GrpoRecipe)
        if not isinstance(base, expected):
            kinds = "evaluate" if step == BENCHMARK else "sft or grpo"
            raise UserError(f"{self.path}: {self._section(step)}.recipe: expected kind {kinds}, found '{base.kind}'")
        return base

    def _arm(self, arm: Arm, seed: int) -> None:
        jobs: dict[str, str] = {}
        policy, before = arm.changes.get(POLICY, self.recipe.policy), None
        for step in self.recipe.stages:
            if arm.leaves_out(step):
                continue
            start = None if before is None else str(self.jobs[before].folder)
            before = jobs[step] = self._stage(arm, seed, step, start or policy, before)
        measured = str(self.jobs[before].folder) if before is not None else policy
        own = {} if self.recipe.stages else {"seeds": [seed]}
        jobs[BENCHMARK] = self._benchmark(arm.name, seed, measured, {**arm.of_step(BENCHMARK), **own}, before)
        self.members[arm.name, seed] = jobs

    def _stage(self, arm: Arm, seed: int, step: str, start: str | None, before: str | None) -> str:
        where = f"{self.path}: arm '{arm.name}', {step}"
        key = "policy" if isinstance(self.bases[step], GrpoRecipe) else "init"
        changes = {**self.steps[step].overrides, **arm.of_step(step)}
        if before is not None and key in changes:
            earlier = self.jobs[before].step
            raise UserError(f"{where}: {key}: this stage starts from {earlier}; `{earlier}: null` leaves that one out")
        if start is not None:
            changes.setdefault(key, start)
        changes["seed"] = seed
        return self._job(arm.name, seed, step, self._load(step, changes, where), before)

    def _untuned(self, arm: Arm, seed: int) -> None:
        first = next(step for step in self.recipe.stages if not arm.leaves_out(step))
        recipe = self.jobs[self.members[arm.name, seed][first]].recipe
        start = (
            recipe.policy if isinstance(recipe, GrpoRecipe) else recipe.init if isinstance(recipe, SftRecipe) else None
        )
        if start is None:
            raise UserError(
                f"{self.path}: untuned: expected a stage that starts from a policy, '{first}' builds its own"
            )
        self.members[UNTUNED, seed] = {BENCHMARK: self._benchmark(UNTUNED, seed, start, arm.of_step(BENCHMARK), None)}

    def _benchmark(
        self, arm: str, seed: int, policy: str | None, changes: Mapping[str, Any], before: str | None
    ) -> str:
        assert policy is not None, "AblateRecipe has stages or a policy"
        whole = {**self.recipe.benchmark.overrides, **changes, "policies": {arm: policy}}
        recipe = self._load(BENCHMARK, whole, f"{self.path}: arm '{arm}', {BENCHMARK}")
        return self._job(arm, seed, BENCHMARK, recipe, before)

    def _job(self, arm: str, seed: int, step: str, recipe: Recipe, before: str | None) -> str:
        """The name of the job that does this, which may be another arm's."""
        does = json.dumps([step, {**resolved(recipe), "run": "", "about": ""}], sort_keys=True)
        if does not in self.known:
            name = f"{arm}/seed{seed}/{step}"
            folder = Path(self.recipe.run) / "arms" / name
            named = recipe.model_copy(update={"run": str(folder), "about": f"{Path(self.recipe.run).name}: {name}"})
            self.jobs[name] = Job(name, step, folder, named, (before,) if before is not None else ())
            self.known[does] = name
            check_names(named, str(self.path), construct_rewards=self.need_inputs)
        return self.known[does]

    def _load(self, step: str, changes: Mapping[str, Any], where: str) -> Recipe:
        texts = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]
        file = self.steps[step].recipe
        try:
            return load_recipe(file, texts, need_inputs=False)
        except UserError as error:
            lines = str(error).splitlines()
            raise UserError("\n".join(f"{where}: {line.removeprefix('command line: ')}" for line in lines)) from error

    def _section(self, step: str) -> str:
        return BENCHMARK if step == BENCHMARK else f"stages.{step}"

    def _check_different(self, arms: Sequence[Arm]) -> None:
        """Two names for the same runs would be counted twice."""
        seed, seen = self.recipe.seeds[0], dict[tuple[str, ...], str]()
        for arm in arms:
            last = [name for step, name in self.members[arm.name, seed].items() if step != BENCHMARK][-1:]
            bench = self.jobs[self.members[arm.name, seed][BENCHMARK]].recipe
            does = (*last, json.dumps({**resolved(bench), "run": "", "about": "", "policies": ""}, sort_keys=True))
            policy = "" if last else next(iter(resolved(bench)["policies"].values()))
            if (other := seen.setdefault((*does, str(policy)), arm.name)) != arm.name:
                raise UserError(
                    f"{self.path}: arms '{other}' and '{arm.name}' are the same runs; leave one out"
                    + (f", or give `reference: {arm.name}`" if other == FULL and self.recipe.reference is None else "")
                )

    def _check_inputs(self) -> None:
        """Every input is there, or a job makes it."""
        if not self.need_inputs:
            return
        made = {str(job.folder) for job in self.jobs.values()}
        missing: dict[str, str] = {}
        for job in self.jobs.values():
            for keys, value in input_paths(job.recipe):
                plugin = PLUGIN_FILE.match(value)
                file = plugin["file"] if plugin else value
                if value not in made and not Path(file).exists() and next(iglob(file, recursive=True), None) is None:
                    where = f"{self.path}: {job.name}: {'.'.join(map(str, keys))}"
                    missing.setdefault(value, f"{where}: expected an existing path, found none at {value}")
        if missing:
            raise UserError("\n".join(missing.values()))
