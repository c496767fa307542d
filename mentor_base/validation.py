"""Held-out loss per task and sample grids while a stage trains.

Shapes: N samples.

The examples and the sampler's seed are fixed, whatever the run's seed, so that curves and pictures of different runs
can be laid side by side. Conditions are never dropped, and the trainer's random numbers are left untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from mentor_base.data.mixture import World
from mentor_base.data.schema import Example
from mentor_base.engines import whole
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.objective import Objective
from mentor_base.runlog import RunFolder
from mentor_base.settings import Validation
from mentor_base.stage_data import Row

VALIDATION_SEED = 20_507


def check_held_out(settings: Validation, world: World, tasks: Iterable[str]) -> None:
    """Draw one held-out example of each task: a split or task that is missing is found before anything is loaded.

    Raises:
        UserError: names it.
    """
    for task in tasks:
        world.example(task, settings.split, VALIDATION_SEED, 0)


class StageValidation:
    """The fixed held-out examples of a stage's tasks, and what is done with them.

    Every process takes its share of the examples; all of them draw the grids (a sharded model needs them all), and
    the main process writes them.
    """

    def __init__(
        self, settings: Validation, world: World, tasks: Sequence[str], objective: Objective, run: RunFolder, batch: int
    ) -> None:
        self.settings, self.world, self.tasks = settings, world, tuple(tasks)
        self.objective, self.run, self.batch = objective, run, batch

    def __call__(
        self, model: torch.nn.Module, policy: MentorForConditionalGeneration, step: int, main_process: bool
    ) -> dict[str, float]:
        """Losses in nats per token, as ``val/<task>`` and their plain mean ``val/mean``; grids as files.

        ``reference/<task>`` is what the loss rises by when each example is asked with the next one's pictures: what
        the policy takes from its references. Near 0 it ignores them.

        Args:
            model: what the trainer calls (perhaps wrapped for several processes).
            policy: the same model unwrapped, which draws.
        """
        with _set_aside(policy):
            losses = {task: self.loss(model, policy.device, task) for task in self.tasks}
            swapped = {
                task: self.loss(model, policy.device, task, swapped=True)
                for task in self.tasks
                if self.settings.examples > 1 and self.example(task, 0).images
            }
            if self.settings.grid:
                for task in self.tasks:
                    examples = [self.example(task, index) for index in range(self.settings.grid)]
                    with whole(policy):
                        sheet = self.objective.sheet(policy, examples, self.settings, self.batch)
                    if main_process:
                        sheet.save(self.run.sample_path(step, task))
        return {
            **{f"val/{task}": loss for task, loss in losses.items()},
            "val/mean": sum(losses.values()) / len(losses),
            **{f"reference/{task}": loss - losses[task] for task, loss in swapped.items()},
        }

    @torch.no_grad()
    def loss(self, model: torch.nn.Module, device: torch.device, task: str, swapped: bool = False) -> float:
        """Mean loss of one task's held-out examples over all processes; ``swapped``: with another one's pictures."""
        rank, world_size = _place()
        share = -(-self.settings.examples // world_size)  # the same for all: a sharded model calls all processes
        totals = torch.zeros(2, dtype=torch.float64, device=device)
        for start in range(0, share, self.batch):
            places = [rank + world_size * n for n in range(start, min(start + self.batch, share))]
            rows = [Row(self.example(task, place % self.settings.examples, swapped), False) for place in places]
            inputs = {
                name: value.to(device) if isinstance(value, torch.Tensor) else value
                for name, value in self.objective.collate(rows).items()
            }
            counted_N = torch.tensor([place < self.settings.examples for place in places], device=device).double()
            losses_N = self.objective.loss(model, inputs)["loss_N"].double()
            totals += torch.stack([(losses_N * counted_N).sum(), counted_N.sum()])
        if world_size > 1:
            dist.all_reduce(totals)
        return (totals[0] / totals[1]).item()

    def example(self, task: str, index: int, swapped: bool = False) -> Example:
        """Held-out example ``index`` of a task, the same in every run; ``swapped``: with the pictures of the next."""
        example = self.world.example(task, self.settings.split, VALIDATION_SEED, index)
        if not swapped:
            return example
        other = self.world.example(task, self.settings.split, VALIDATION_SEED, (index + 1) % self.settings.examples)
        # Where the text has marks for another number of pictures, only the first ones can change places.
        return replace(example, images=(*other.images, *example.images[len(other.images) :])[: len(example.images)])


@contextmanager
def _set_aside(policy: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards the former mode and the former state of the random numbers."""
    training = policy.training
    policy.eval()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        policy.train(training)


def _place() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
