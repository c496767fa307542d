"""From a recipe to the sizes of its policy, without reading a weight.

``init`` and ``policy`` name a folder, of which config.json is read. Where that folder is not there yet, overrides
``model.size=XL`` and ``model.options.FIELD=...`` stand in for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mentor_base.build import FROM_SCRATCH, TEXT_VOCABULARY
from mentor_base.checkpoint import model_folder, policy_config
from mentor_base.config import SIZES, MentorConfig
from mentor_base.data.sources import RowWorld
from mentor_base.epochs import steps_of
from mentor_base.errors import UserError, nearest
from mentor_base.settings import PolicyModel, RowData, TrainedParts
from mentor_base.vq import VQConfig
from mentor_rl.recipe import GrpoRecipe, Recipe, SftRecipe
from mentor_rl.recipe_files import load_recipe
from mentor_rl.recipe_names import check_names
from mentor_rl.strict_yaml import parse_value

SIZE, OPTION = "model.size", "model.options."


def planned_steps(recipe: SftRecipe | GrpoRecipe, rows: int | None) -> tuple[int | None, tuple[str, ...]]:
    """Optimizer steps and where they come from; of epochs they follow from ``rows``, else from the rows on disk.

    Raises:
        UserError: ``rows`` for a recipe whose steps do not depend on them.
    """
    if isinstance(recipe, GrpoRecipe) or recipe.optimisation.epochs is None:
        if rows is not None:
            raise UserError(
                f"--rows: expected a recipe with optimisation.epochs, found {recipe.optimisation.steps} steps"
            )
        return recipe.optimisation.steps, ()
    mixture, epochs = recipe.stage.mixture, recipe.optimisation.epochs
    if rows is None:
        assert isinstance(mixture.data, RowData), "recipes refuse epochs of a world without end"
        try:
            rows = RowWorld(mixture.data).count(mixture.weights)
        except UserError as error:
            return None, (f"hours need the number of rows, and they cannot be counted ({error}); give --rows",)
    steps = steps_of(epochs, rows, recipe.optimisation.batch)
    return steps, (f"{epochs:g} x {rows:,} rows are {steps:,} steps",)


class Planned(NamedTuple):
    """Attributes: notes: what was taken for granted about the policy, for people."""

    recipe: SftRecipe | GrpoRecipe
    config: MentorConfig
    notes: tuple[str, ...]

    @property
    def train(self) -> TrainedParts:
        return self.recipe.train if isinstance(self.recipe, GrpoRecipe) else self.recipe.stage.train


def read_planned(path: Path, overrides: Sequence[str]) -> Planned:
    """A recipe and the sizes of its policy.

    Raises:
        UserError: a kind that is not planned, a policy whose sizes nobody says, an unknown size or option.
    """
    sizes = [text for text in overrides if text.startswith("model.")]
    others = [text for text in overrides if text not in sizes]
    recipe = _trainable(load_recipe(path, others, need_inputs=False), path)
    if isinstance(recipe, SftRecipe) and recipe.model is not None:
        recipe = _trainable(load_recipe(path, overrides, need_inputs=False), path)
        sizes = []
    check_names(recipe, str(path), construct_rewards=False)
    config, notes = _config(recipe, sizes, path)
    return Planned(recipe, config, notes)


def _trainable(recipe: Recipe, path: Path) -> SftRecipe | GrpoRecipe:
    if isinstance(recipe, (SftRecipe, GrpoRecipe)):
        return recipe
    raise UserError(f"{path}: kind: expected sft or grpo, found '{recipe.kind}'")


def _config(recipe: SftRecipe | GrpoRecipe, sizes: Sequence[str], path: Path) -> tuple[MentorConfig, tuple[str, ...]]:
    if isinstance(recipe, SftRecipe) and recipe.model is not None and recipe.tokenizer is not None:
        return _from_scratch(recipe.model, recipe.tokenizer)
    key, folder = ("policy", recipe.policy) if isinstance(recipe, GrpoRecipe) else ("init", recipe.init)
    if sizes:
        model = _stand_in(sizes)
        return _of_size(model, {}), (f"the policy is of size {model.size}, as given; {key} ({folder}) is not read",)
    try:
        found = model_folder(str(folder))
    except UserError as error:
        raise UserError(
            f"{path}: {key}: expected a policy's folder, found no config.json in {folder}; "
            f"give its size instead, e.g. {SIZE}=XL"
        ) from error
    return policy_config(found), ()


def _from_scratch(model: PolicyModel, tokenizer: str) -> tuple[MentorConfig, tuple[str, ...]]:
    """What build_policy would build, the text vocabulary at its largest."""
    decided: dict[str, Any] = {}
    if model.size in FROM_SCRATCH:
        decided = {"t5_config.vocab_size": TEXT_VOCABULARY + 1, "qformer_config.vocab_size": TEXT_VOCABULARY + 1}
    try:
        folder = model_folder(tokenizer)
    except UserError:
        note = f"the tokenizer is that of size {model.size}: {tokenizer} is not there to be read"
        return _of_size(model, decided), (note,)
    return _of_size(model, {**decided, "vq_config": VQConfig.from_pretrained(str(folder))}), ()


def _stand_in(overrides: Sequence[str]) -> PolicyModel:
    size, options = None, {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if key == SIZE and equals:
            size = value
        elif key.startswith(OPTION) and equals:
            options[key.removeprefix(OPTION)] = parse_value(value)
        else:
            raise UserError(f"command line: expected {SIZE}=... or {OPTION}FIELD=..., found '{text}'")
    if size is None:
        raise UserError(f"command line: expected {SIZE}=... beside {OPTION}..., found none; {nearest('', SIZES)}")
    return PolicyModel(size=size, options=options)


def _of_size(model: PolicyModel, decided: dict[str, Any]) -> MentorConfig:
    try:
        return MentorConfig.of_size(model.size, **{**model.options, **decided})
    except UserError as error:
        raise UserError(f"command line: {str(error).replace('policy.', 'model.', 1)}") from error
