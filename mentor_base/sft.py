"""Supervised stages on transformers.Trainer: a freeze plan, a mixture of tasks, one loss.

    train_stage(init=None, tokenizer="...", model=PolicyModel(), stage=..., optimisation=..., ...)

The loop itself is the Trainer's; what is ours is named here and nowhere else: which parameters train
(``stage.train``), the order of the rows (``StageTrainer.get_train_dataloader``), warm-up and cosine
(``schedule``), weight decay on matrices only, and validation per task (``StageTrainer.evaluate``).

Deviations from the reference training (shared with the paper's text where the two differ):
- gradients of an accumulated batch are averaged, so that they equal those of the large batch; there they are summed.
- the schedule counts optimizer steps; there it is sized in micro-batches, so that it ends at 91 % of the peak.
- mixture weights are drawn per row; there they are row counts.
- float32 weights under AdamW; there the multimodal encoder is bf16 without master weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from mentor_base.batch_split import launched_processes, split_batch
from mentor_base.build import build_policy
from mentor_base.callbacks import (
    InterruptCallback,
    LossAnew,
    ProgressCallback,
    RunLogCallback,
    hide_bars,
    quieten,
    run_callbacks,
)
from mentor_base.captioning import CaptionTokens, load_t5
from mentor_base.checkpoint import load_policy, load_vq, save_policy
from mentor_base.data.broken import read_report
from mentor_base.data.mixture import World, world_of
from mentor_base.engines import tokenizer_state, whole_state
from mentor_base.epochs import in_steps
from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.loading import CarriedRows, CarryingCollator, outlive_signals, raise_fault
from mentor_base.lora import FOLDER, adapters, add_adapters, count_parameters, merged_state, save_adapter
from mentor_base.model import PARTS, MentorForConditionalGeneration
from mentor_base.objective import ImageTokens, Objective
from mentor_base.processor import MentorProcessor
from mentor_base.runlog import RunFolder
from mentor_base.settings import AdamW, Checkpoints, Optimisation, PolicyModel, Stage, TrainedParts, Validation
from mentor_base.stage_data import Collator, StageDataset
from mentor_base.states import WholeStates, take_up
from mentor_base.trackers import check_trackers, tracker_callbacks
from mentor_base.trainer_arguments import one_device, shared_arguments
from mentor_base.validation import StageValidation, check_held_out

logger = logging.getLogger(__name__)

LOG_LINES = 400  # about so many lines of metrics per run


def train_stage(
    *,
    init: str | None,
    tokenizer: str | None,
    model: PolicyModel | None,
    stage: Stage,
    optimisation: Optimisation,
    validation: Validation,
    checkpoints: Checkpoints,
    report_to: tuple[str, ...],
    seed: int,
    run: RunFolder,
) -> None:
    """Train one stage to its end and write the policy to ``run.final``; takes up the newest state in ``run``.

    Either ``init`` names a policy (export or run folder), or ``model`` is built on the codes of ``tokenizer``.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, with a state saved.
        UserError: a task the data does not know, a checkpoint that does not fit, a batch that does not divide,
            a loss that is no number, no space on the disk.
    """
    if run.finished:
        logger.warning("%s: this run is finished; nothing to do", run.path)
        return
    if optimisation.threads is not None:
        torch.set_num_threads(optimisation.threads)
    hide_bars()
    check_trackers(report_to)
    world = world_of(stage.mixture.data, run.broken_file)
    optimisation = in_steps(optimisation, stage.mixture, world, run)
    args = training_arguments(optimisation, checkpoints, seed, run, stage.workers)
    rows = StageDataset(stage.mixture, seed, optimisation.steps * optimisation.batch, world)
    check_held_out(validation, world, stage.mixture.weights)
    policy, processor = starting_point(init, tokenizer, model, world, seed)
    set_trained_parts(policy, stage.train, seed)
    objective = objective_of(stage, optimisation, policy, processor)
    with InterruptGuard() as guard:
        trainer = StageTrainer(
            model=policy,
            args=args,
            data_collator=CarryingCollator(objective.collate),
            objective=objective,
            train_dataset=CarriedRows(rows),
            callbacks=[
                *tracker_callbacks(report_to, run),
                ValidationCallback(validation.every),
                *run_callbacks(run, guard, f"{stage.name} stage", checkpoints.keep),
            ],
            schedule=partial(schedule, optimisation),
            validation=StageValidation(
                validation, world, list(stage.mixture.weights), objective, run, args.per_device_train_batch_size
            ),
        )
        quieten(trainer)
        run_trainer(trainer, run)
        if trainer.callback(InterruptCallback).stopped:
            raise Interrupted(
                f"{run.path}: stopped at step {trainer.state.global_step} of {trainer.state.max_steps} with its state "
                "saved; the same command goes on from there"
            )
        finish(trainer, processor, run)


def starting_point(
    init: str | None, tokenizer: str | None, model: PolicyModel | None, world: World, seed: int
) -> tuple[MentorForConditionalGeneration, MentorProcessor]:
    """The policy that a stage starts from: loaded, or built with random numbers that ``seed`` fixes."""
    if init is not None:
        return load_policy(init)
    if model is None or tokenizer is None:
        raise UserError("recipe: expected init (a policy to start from), or model and tokenizer; found neither")
    set_seed(seed)
    return build_policy(model, load_vq(tokenizer), world.corpus())


def objective_of(
    stage: Stage, optimisation: Optimisation, policy: MentorForConditionalGeneration, processor: MentorProcessor
) -> Objective:
    """Captions in the projector stage, image tokens in every other one."""
    if stage.captioner is None:
        return ImageTokens(Collator(processor, policy.vq))
    dtype = torch.bfloat16 if optimisation.precision == "bf16" else torch.float32
    return CaptionTokens(policy, processor, load_t5(stage.captioner, dtype))


def set_trained_parts(policy: MentorForConditionalGeneration, train: TrainedParts, seed: int = 0) -> None:
    """Let only the plan's parts collect gradients, or their adapters; the VQ tokenizer is in none of them.

    ``seed`` decides the numbers that adapters start from.

    Raises:
        UserError: train.vision where the vision tower is the tokenizer's trunk, which stays frozen; see also lora.py.
    """
    if train.vision and policy.config.vision_tower == "tokenizer":
        raise UserError("stage.train.vision: expected false with vision_tower 'tokenizer', found true")
    policy.requires_grad_(False)
    if train.lora is not None:
        add_adapters(policy, train, seed)
        return
    for part in train.parts:
        policy.get_submodule(PARTS[part]).requires_grad_(True)


def schedule(optimisation: AdamW, step: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) as a share of ``optimisation.lr``.

    Rises in equal parts over the warm-up, whose first step is not zero; then half a cosine down to ``final_lr``,
    which the last step has.
    """
    warmup = round(optimisation.warmup * optimisation.steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, optimisation.steps - 1 - warmup))
    return optimisation.final_lr + (1.0 - optimisation.final_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


class StageTrainer(LossAnew, WholeStates, Trainer):
    """transformers.Trainer at the seams where a stage differs from its defaults."""

    def __init__(
        self,
        *,
        objective: Objective,
        schedule: Callable[[int], float],
        validation: StageValidation,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tokenizer_state = tokenizer_state(self.model)
        self.objective, self.schedule, self.validation = objective, schedule, validation
        self.lr_scheduler: LambdaLR | None
        self.control: TrainerControl
        self.model_accepts_loss_kwargs = False  # the loss is a mean per micro-batch: the Trainer divides it
        self.last_metrics: dict[str, float] = {}

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        raise_fault(inputs)
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean loss of the micro-batch; every sample counts alike, so that means of means are exact."""
        outputs = self.objective.loss(model, inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Warm-up and cosine, stepped once per optimizer step."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.schedule)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices and tables decay; gains, biases and single vectors do not."""
        return [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out loss per task and sample grids; see validation.py."""
        metrics = self.validation(self.model_wrapped, self.model, self.state.global_step, self.is_world_process_zero())
        self.last_metrics = metrics
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer's estimate walks all modules at each step."""
        return 0

    def callback(self, kind: type[Any]) -> Any:
        """The callback of this class."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, kind))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The rows in their order: what stands where is the business of stage_data.py."""
        batches: DataLoader[Any] = self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                self._train_batch_size,
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                worker_init_fn=outlive_signals,
            )
        )
        return batches


class ValidationCallback(TrainerCallback):
    """Asks for a validation every so many steps, and at the last one."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            control.should_evaluate = True
        return control


def training_arguments(
    optimisation: Optimisation, checkpoints: Checkpoints, seed: int, run: RunFolder, workers: int
) -> TrainingArguments:
    """The Trainer's arguments. ``batch`` counts all processes; micro-batches and accumulation follow from it.

    Raises:
        UserError: when batch is no multiple of micro_batch times the number of processes.
    """
    split = split_batch(optimisation, launched_processes())
    return one_device(
        TrainingArguments(
            **shared_arguments(optimisation, checkpoints, seed, run),
            per_device_train_batch_size=split.micro,
            gradient_accumulation_steps=split.accumulation,
            logging_steps=max(1, optimisation.steps // LOG_LINES),
            dataloader_num_workers=workers,
        )
    )


def run_trainer(trainer: StageTrainer, run: RunFolder) -> None:
    """Train from the newest state in ``run``, or from the start with a validation of the untrained model."""
    state = take_up(run, trainer.is_world_process_zero())
    progress = trainer.callback(ProgressCallback)
    trainer.args.eval_on_start = state is None  # once the model is where its engine wants it
    try:
        trainer.train(resume_from_checkpoint=str(state) if state is not None else None)
    except BaseException as error:
        progress.close(error)
        raise


def finish(trainer: StageTrainer, processor: MentorProcessor, run: RunFolder) -> None:
    """Write the policy and what its card needs; the main process, once all have handed over their parts."""
    state = whole_state(trainer.model) | trainer.tokenizer_state
    if not trainer.is_world_process_zero():
        return
    write_policy(
        trainer.model,
        processor,
        run,
        state,
        steps=trainer.state.global_step,
        cpu_seconds=trainer.callback(RunLogCallback).cpu_seconds,
        broken_rows=len(read_report(run.broken_file)),
        metrics=trainer.last_metrics or _last_validation(run),
    )


def write_policy(
    policy: MentorForConditionalGeneration,
    processor: MentorProcessor,
    run: RunFolder,
    state: Mapping[str, torch.Tensor],
    *,
    steps: int,
    cpu_seconds: float,
    **facts: Any,
) -> None:
    """Write a trained policy to ``run.final``, plain also where adapters were trained, and what its card needs.

    ``state``: its tensors, whole.
    """
    with run.writing_final() as folder:
        save_policy(policy.eval(), processor, folder, state=merged_state(policy, state))
        if adapters(policy):
            save_adapter(policy, state, folder / FOLDER)
        run.write_manifest(
            training_seconds=round(run.seconds, 1),
            cpu_minutes=round(cpu_seconds / 60, 2),
            steps=steps,
            parameters=count_parameters(policy, state),
            **facts,
        )


def _last_validation(run: RunFolder) -> dict[str, float]:
    """The newest validation in the log: that of a run that was stopped between its last step and its end."""
    found = [line for line in run.metrics() if "val/mean" in line]
    newest = found[-1] if found else {}
    return {name: value for name, value in newest.items() if name.startswith(("val/", "reference/"))}
