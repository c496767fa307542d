"""Epochs -> optimizer steps, once the rows are there to be counted.

An epoch is as many draws as the mixture's tasks have training rows together: steps = ceil(epochs x rows / batch). One
task alone then meets each of its rows once an epoch. Of several tasks each is met by its weight: a task whose weight is
below its share of the rows is seen in part, one above it more than once.
"""

from __future__ import annotations

import math
from fractions import Fraction

from mentor_base.batch_split import launched_rank
from mentor_base.data.mixture import World
from mentor_base.data.sources import RowWorld
from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_base.settings import Mixture, Optimisation, StageOptimisation


def in_steps(optimisation: Optimisation, mixture: Mixture, world: World, run: RunFolder) -> Optimisation:
    """The same settings with ``steps``; what followed from epochs is kept in the manifest.

    Raises:
        UserError: epochs of a world without end, or a run taken up with more or fewer rows than it began with.
    """
    if not isinstance(optimisation, StageOptimisation) or optimisation.epochs is None:
        return optimisation
    if not isinstance(world, RowWorld):
        raise UserError(
            "optimisation.epochs: expected rows on disk, found a world without end; give optimisation.steps"
        )
    rows = world.count(mixture.weights)
    steps = steps_of(optimisation.epochs, rows, optimisation.batch)
    planned = {"rows": rows, "epochs": optimisation.epochs, "steps": steps}
    begun = run.manifest().get("epoch_plan", planned)
    if begun != planned:
        raise UserError(f"{run.path}: expected the {begun['rows']} rows that this run began with, found {rows}")
    if launched_rank() == 0:
        run.write_manifest(epoch_plan=planned)
    return optimisation.model_copy(update={"steps": steps})


def steps_of(epochs: float, rows: int, batch: int) -> int:
    """Optimizer steps of so many passes; the last one may draw into the next pass."""
    return math.ceil(Fraction(str(epochs)) * rows / batch)
