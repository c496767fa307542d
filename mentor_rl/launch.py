"""Whether a recipe fits what it was started on: the number of processes, their engine, a GPU where it asks for one.

Checked before a run folder is made: the same recipe may be started anew with another number, in the same folder.
"""

from __future__ import annotations

from mentor_base.batch_split import split_batch
from mentor_base.errors import UserError
from mentor_rl.recipe import GrpoRecipe, Recipe, ScorerRecipe, SftRecipe, TokenizerRecipe


def check_launch(recipe: Recipe, where: str, processes: int) -> None:
    """Refuse ``processes`` that cannot share the recipe's batch evenly, or one at all.

    Raises:
        UserError: which number of processes does not fit which setting; a rollout engine without its GPU; a moving
            reference under DeepSpeed or FSDP.
    """
    try:
        _check(recipe, processes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check(recipe: Recipe, processes: int) -> None:
    if isinstance(recipe, TokenizerRecipe | ScorerRecipe) and processes > 1:
        raise UserError(
            f"kind: '{recipe.kind}' expected one process, found {processes}; start it without torchrun or accelerate"
        )
    if isinstance(recipe, SftRecipe):
        split_batch(recipe.optimisation, processes)
    elif isinstance(recipe, GrpoRecipe):
        from mentor_rl.grpo_setup import check_reference, check_rollout, pictures_per_process

        check_rollout(recipe, pictures_per_process(recipe, processes))
        check_reference(recipe)
