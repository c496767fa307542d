"""Arms of an ablation: names, and what each one changes in the steps' recipes.

    leave_out: grpo.rewards                       without_style, without_clip_image, ...
    leave_out: stage2.stage.mixture.weights       without_recovery, ...: the mixture normalises what is left
    only_one: grpo.rewards                        only_style, ...
    grid: {grpo.rewards.style.weight: [1, 6]}     style.weight=1, style.weight=6
    arms: {no_stage1: {stage1: null, ...}}        as named

A reward that is left out is scored still, as a monitor (``role: monitor``): it moves nothing, and the arm's table says
what became of it. So trained and held-out rewards stand in one matrix.

A key is ``step.key.sub``: a stage's name or ``benchmark``, then the dotted key of that recipe; or ``policy``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mentor_rewards.contract import RewardEntry
from pydantic import BaseModel

from mentor_base.errors import UserError, nearest
from mentor_rl.ablation.recipe import AblateRecipe, Axis

FULL = "full"
UNTUNED = "untuned"
POLICY = "policy"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+=-]*")


@dataclass(frozen=True)
class Arm:
    """One way to run the steps.

    Attributes:
        name: also its folder's name.
        changes: step.key -> value; {stage: None} leaves the stage out.
    """

    name: str
    changes: Mapping[str, Any]

    def of_step(self, step: str) -> dict[str, Any]:
        """Its changes to one step's recipe, by that recipe's dotted keys."""
        return {key.partition(".")[2]: value for key, value in self.changes.items() if key.startswith(f"{step}.")}

    def leaves_out(self, step: str) -> bool:
        return step in self.changes and self.changes[step] is None


def arms_of(recipe: AblateRecipe, bases: Mapping[str, BaseModel], where: str) -> tuple[Arm, ...]:
    """All arms, in the order of the recipe; "full", where it is the reference, before them.

    Args:
        bases: step -> its recipe as all arms share it, the benchmark included.
        where: the ablation's file, for errors.

    Raises:
        UserError: an unknown step, key, entry or reference; a name twice; an axis that makes no arm.
    """
    arms = [Arm(FULL, {})] if recipe.reference is None else []
    for number, axis in enumerate(recipe.axes):
        made = list(_axis_arms(axis, bases, f"{where}: axes.{number}"))
        if not made:
            raise UserError(f"{where}: axes.{number}: this axis makes no arm: it changes nothing that training uses")
        arms += made
    arms += [Arm(name, changes) for name, changes in recipe.arms.items()]
    _check_names(arms, recipe, where)
    for arm in arms:
        for key, value in arm.changes.items():
            _check_key(key, value, recipe, f"{where}: arm '{arm.name}'")
    reference = recipe.reference or FULL
    if reference not in (names := [arm.name for arm in arms]):
        raise UserError(f"{where}: reference: unknown arm '{reference}'; {nearest(reference, names)}")
    return tuple(arms)


def _axis_arms(axis: Axis, bases: Mapping[str, BaseModel], where: str) -> Iterator[Arm]:
    if axis.grid is not None:
        yield from _grid_arms(axis.grid, where)
        return
    way, dotted = ("leave_out", axis.leave_out) if axis.leave_out is not None else ("only_one", axis.only_one)
    assert dotted is not None, "Axis has one of the three"
    entries = _mapping_at(dotted, bases, f"{where}.{way}")
    names = _trained(entries)
    for name in axis.names or ():
        if name not in names:
            raise UserError(f"{where}.names: unknown entry '{name}' of {dotted}; {nearest(name, names)}")
    if len(names) < 2:
        raise UserError(
            f"{where}.{way}: expected two or more trained entries in {dotted}, found {', '.join(names) or 'none'}"
        )
    for name in axis.names or names:
        gone = {name} if way == "leave_out" else set(names) - {name}
        label = f"without_{name}" if way == "leave_out" else f"only_{name}"
        yield Arm(label, _without(dotted, entries, gone))


def _trained(entries: Mapping[str, Any]) -> list[str]:
    return [name for name, entry in entries.items() if not isinstance(entry, RewardEntry) or entry.role == "train"]


def _without(dotted: str, entries: Mapping[str, Any], gone: set[str]) -> dict[str, Any]:
    """Rewards become monitors; entries of any other mapping go."""
    if all(isinstance(entry, RewardEntry) for entry in entries.values()):
        return {f"{dotted}.{name}.role": "monitor" for name in entries if name in gone}
    return {dotted: {name: value for name, value in entries.items() if name not in gone}}


def _grid_arms(grid: Mapping[str, tuple[Any, ...]], where: str) -> Iterator[Arm]:
    for values in itertools.product(*grid.values()):
        parts = [
            f"{_short(key, grid)}={_shown(value, f'{where}.grid.{key}')}"
            for key, value in zip(grid, values, strict=True)
        ]
        yield Arm("_".join(parts), dict(zip(grid, values, strict=True)))


def _short(key: str, keys: Iterable[str]) -> str:
    """The end of a dotted key that tells it from the others: two parts of a deep one."""
    parts = key.split(".")
    for count in range(2 if len(parts) > 2 and parts[0] != "benchmark" else 1, len(parts)):
        tail = ".".join(parts[-count:])
        if sum(other == tail or other.endswith(f".{tail}") for other in keys) == 1:
            return tail
    return key


def _shown(value: Any, where: str) -> str:
    if isinstance(value, (list, tuple)) and value and not any(isinstance(each, (list, tuple, dict)) for each in value):
        return ",".join(_shown(each, where) for each in value)
    if isinstance(value, str):
        return value.rstrip("/").rpartition("/")[2]
    if isinstance(value, (bool, int, float)) or value is None:
        return f"{value:g}" if isinstance(value, float) else str(value).lower()
    raise UserError(f"{where}: expected numbers, names or lists of them, found {value!r}; name such arms under `arms`")


def _mapping_at(dotted: str, bases: Mapping[str, BaseModel], where: str) -> Mapping[str, Any]:
    """The mapping under ``step.key`` of the shared recipes."""
    step, *keys = dotted.split(".")
    if step not in bases:
        raise UserError(f"{where}: unknown step '{step}'; {nearest(step, bases)}")
    value: Any = bases[step]
    for key in keys:
        known = (
            list(type(value).model_fields)
            if isinstance(value, BaseModel)
            else list(value)
            if isinstance(value, Mapping)
            else []
        )
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}' in {dotted}; {nearest(key, known)}")
        value = value[key] if isinstance(value, Mapping) else getattr(value, key)
    if not isinstance(value, Mapping):
        raise UserError(
            f"{where}: expected a mapping such as rewards or mixture weights at {dotted}, found {value!r:.60}"
        )
    return value


def _check_names(arms: Iterable[Arm], recipe: AblateRecipe, where: str) -> None:
    taken: set[str] = {UNTUNED} if recipe.untuned else set()
    for arm in arms:
        if not NAME.fullmatch(arm.name):
            raise UserError(f"{where}: arm '{arm.name}': expected a name of letters, digits and _ . , + = -")
        if arm.name in taken:
            raise UserError(f"{where}: arm '{arm.name}': this name is given twice; name one of them under `arms`")
        taken.add(arm.name)


def _check_key(key: str, value: Any, recipe: AblateRecipe, where: str) -> None:
    steps = [*recipe.stages, "benchmark"]
    step, dot, _ = key.partition(".")
    if key == POLICY:
        return
    if step not in steps:
        raise UserError(f"{where}: {key}: unknown step '{step}'; {nearest(step, [*steps, POLICY])}")
    if not dot and (value is not None or step == "benchmark"):
        raise UserError(f"{where}: {key}: expected {step}.key, or null to leave a stage out, found {value!r:.60}")
    if not dot and len(recipe.stages) == 1:
        raise UserError(f"{where}: {key}: this is the only stage; `untuned: true` measures what it starts from")
