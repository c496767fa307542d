"""Names in a recipe that only the code behind them can check: rewards, sizes, styles, and the options of each; and
settings of GRPO that contradict each other.

Checked before a run folder is made, so that a slip of the pen costs a second and not a half-written run.
"""

from __future__ import annotations

from collections.abc import Iterator

from mentor_rewards.contract import RewardError
from pydantic import BaseModel

from mentor_base.errors import UserError, nearest
from mentor_base.settings import EmojiData, PolicyModel
from mentor_rl.recipe import GrpoRecipe, Recipe, SftRecipe


def check_names(recipe: Recipe, where: str, *, construct_rewards: bool = True) -> None:
    """Raise UserError for a reward, style, size or option that nothing answers to, or a contradiction.

    With ``construct_rewards`` the options of rewards are checked too, which needs their files to be there.
    """
    for keys, data in _emoji_sections(recipe):
        _check_styles(data, f"{where}: {keys}.styles")
    if isinstance(recipe, SftRecipe) and recipe.model is not None:
        _check_model(recipe.model, where)
    if isinstance(recipe, GrpoRecipe):
        _check_settings(recipe, where)
        _check_rewards(recipe, where, construct_rewards)


def _check_styles(data: EmojiData, where: str) -> None:
    if data.styles is None:
        return
    from mentor_base.data.atlas import Atlas

    known = Atlas.load().styles
    for style in data.styles:
        if style not in known:
            raise UserError(f"{where}: unknown style '{style}'; {nearest(style, known)}")


def _check_model(model: PolicyModel, where: str) -> None:
    from mentor_base.config import MentorConfig

    try:
        MentorConfig.of_size(model.size, **model.options)
    except UserError as error:
        raise UserError(f"{where}: {str(error).replace('policy.', 'model.', 1)}") from error


def _check_settings(recipe: GrpoRecipe, where: str) -> None:
    from mentor_rl.contradictions import refuse

    try:
        refuse(recipe)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_rewards(recipe: GrpoRecipe, where: str, construct: bool) -> None:
    from mentor_rewards.registry import build_reward, reward_class

    for name, entry in recipe.rewards.items():
        try:
            if construct:
                build_reward(name, entry)
            else:
                reward_class(entry.use or name)
        except RewardError as error:
            raise UserError(f"{where}: rewards.{name}: {error}") from error


def _emoji_sections(section: BaseModel, above: str = "") -> Iterator[tuple[str, EmojiData]]:
    """Every emoji world that a recipe names, with its key."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        keys = f"{above}.{name}" if above else name
        if isinstance(value, EmojiData):
            yield keys, value
        elif isinstance(value, BaseModel):
            yield from _emoji_sections(value, keys)
