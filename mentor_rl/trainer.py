"""GRPO on trl: the one file that knows how trl's trainer works (trl_arguments.py knows its settings).

``MentorGRPOTrainer`` meets trl's GRPOTrainer at five seams and nowhere else; each is marked SEAM below:

1. ``rollout_func``: draw the pictures ourselves, score each once with the whole composite;
2. ``_generate_and_score_completions``: see the dataset rows (``rollout_func`` gets the prompts only);
3. ``_get_per_token_logps_and_entropies``: log-probs by the policy's own "logprobs" mode (policy_passes.py);
4. the reference model: a second frozen copy that we load (trl would look the class up inside transformers), or the
   policy with its adapters switched off;
5. ``log``: our names, without the text metrics that mean nothing for pictures.

What trl then does is stated in objective.py and tested against it: advantages, ratio, clip, KL, loss.

Conditioning reaches the loss by a key: a sample's "prompt tokens" are (uid, row of the rollout), which survive trl's
shuffling and splitting; prompts, prefixes and the sampler's log-probs are looked up by them.

A run is exact under resume: the dataset has one row for each prompt of the whole run in a fixed order (no second epoch,
no shuffle), draws depend on (seed, uid, member) alone, and states are saved only between two rollouts.

Shapes: N samples of a pass, K unique prompts, G group size, L image tokens, R trained rewards.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from mentor_rewards.aggregate import for_trl
from mentor_rewards.composite import Composite, CompositeScores
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    GenerationConfig,
    TrainerCallback,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig, GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp

from mentor_base.callbacks import LossAnew
from mentor_base.decode_graph import DecodeEngine
from mentor_base.engines import tokenizer_state, whole
from mentor_base.errors import UserError
from mentor_base.guidance import EntropyMode
from mentor_base.lora import WithoutAdapters
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.runlog import write_atomically
from mentor_base.states import PREFIX, WholeStates
from mentor_rl.algorithm import GrpoAlgorithm, Importance
from mentor_rl.grpo_callbacks import PhaseClock, ReferenceMover
from mentor_rl.grpo_setup import MONITOR_SEED
from mentor_rl.monitors.fixed_prompts import FixedPrompts, undisturbed_randomness
from mentor_rl.monitors.gap import Gap, check_gap
from mentor_rl.monitors.memory import peak_memory
from mentor_rl.monitors.rollout_watch import RolloutWatch
from mentor_rl.objective import importance_weights
from mentor_rl.picture_tokens import PictureTokens
from mentor_rl.policy_passes import PolicyPasses
from mentor_rl.rollout import (
    MONITOR_STREAM,
    POLICY,
    REFERENCE,
    PromptStore,
    Rollout,
    chunks_of,
    roll_out,
)
from mentor_rl.scoring import Scoring
from mentor_rl.trl_arguments import check_arguments

logger = logging.getLogger(__name__)

KEPT_METRICS = {  # trl's name -> ours
    "kl": "kl",
    "entropy": "entropy",
    "entropy_coef": "entropy_coefficient",
    "clip_ratio/region_mean": "clip_share",
    "cispo_clip_ratio": "clip_share",
    "vespo/phi_seq_mean": "vespo_weight",
}


class MentorGRPOTrainer(LossAnew, WholeStates, GRPOTrainer):
    """GRPO of a MENTOR policy.

    Args:
        policy: what is trained; parameters that shall stay as they are do not require gradients.
        reference: the frozen policy for the KL term; None exactly when ``args.beta`` is 0.
        composite: loaded rewards.
        store: the prompts of the run by uid, 0 <= uid < ``rows``.
        fixed_store, fixed: the prompts that are watched.
        watched: sees each rollout.
        algorithm: how pictures are drawn, and what is optimised; ``args`` says the latter in trl's words.
        lr_schedule: optimizer step -> share of the learning rate.
        engine: runs the sampler's loop; None: as plain Python.
    """

    def __init__(
        self,
        *,
        policy: MentorForConditionalGeneration,
        reference: MentorForConditionalGeneration | WithoutAdapters | None,
        args: GRPOConfig,
        composite: Composite,
        store: PromptStore,
        fixed_store: PromptStore,
        fixed: FixedPrompts,
        watched: RolloutWatch,
        algorithm: GrpoAlgorithm,
        rows: int,
        lr_schedule: Callable[[int], float],
        callbacks: Sequence[TrainerCallback],
        engine: DecodeEngine | None = None,
    ) -> None:
        check_arguments(args, policy.config.image_tokens)
        if (reference is None) != (args.beta == 0.0):
            raise ValueError(f"reference: expected one exactly when beta is above 0, found beta {args.beta:g}")
        self.tokenizer_state = tokenizer_state(policy)
        self.composite, self.store, self.algorithm = composite, store, algorithm
        self.fixed_store, self.fixed = fixed_store, fixed
        self.watched, self.gap = watched, Gap()
        self.watched.gathered = self._gathered
        self.keep_best: Callable[[int, Mapping[str, float]], None] | None = None  # called on all processes
        self.lr_schedule = lr_schedule
        self.engine = engine
        self.scoring = Scoring(composite, ahead=algorithm.rollout.chunk is not None)
        self._uids: list[int] = []
        self._remembered: tuple[int, dict[str, Any]] = (-1, {})  # by rewards, before the rollout after so many steps
        self._rollout: Rollout | None = None
        self._columns: dict[str, list[float | None]] = {}
        self._first_rollout = True
        self.clock = PhaseClock()
        tokens = PictureTokens()
        # What trl and the Trainer would otherwise adapt to "the tokenizer", with a warning. train_grpo puts them back.
        policy.config.pad_token_id, policy.config.eos_token_id = tokens.pad_token_id, tokens.eos_token_id
        policy.generation_config = GenerationConfig(pad_token_id=tokens.pad_token_id, eos_token_id=tokens.eos_token_id)
        beta, args.beta = args.beta, 0.0  # SEAM 4: trl builds no reference of its own
        super().__init__(
            model=policy,
            reward_funcs=[self._column(name) for name in composite.trained],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [str(uid) for uid in range(rows)], "uid": list(range(rows))}),
            processing_class=tokens,
            callbacks=[self.clock, *callbacks],
            rollout_func=self._draw,  # SEAM 1
        )
        if engine is not None and (self.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
            raise UserError(
                f"algorithm.rollout.engine: expected 'loop' where weights are dealt out over processes (ZeRO-3, FSDP) "
                f"and gathered anew for each rollout, found '{engine.way}'"
            )
        args.beta = self.beta = beta
        self.passes = PolicyPasses(algorithm, store, args.seed, self.accelerator.autocast)
        self.ref_model = None if reference is None else self._frozen(reference, policy)
        self.mover: ReferenceMover | None = None
        if algorithm.reference is not None and self.ref_model is not None:
            forget = partial(store.forget, REFERENCE)
            self.mover = ReferenceMover(algorithm.reference, policy, self.ref_model, forget)
            self.add_callback(self.mover)

    def _frozen(
        self, reference: MentorForConditionalGeneration | WithoutAdapters, policy: MentorForConditionalGeneration
    ) -> torch.nn.Module:
        if isinstance(reference, WithoutAdapters):
            return reference
        reference.requires_grad_(False)
        reference.eval()
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(reference, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(reference, self.accelerator)
        reference.vq = policy.vq  # frozen in both, so held once
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    # ---- rollouts --------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """SEAM 2: one row per sample; processes hold neighbouring parts of the global batch."""
        self._uids = [row["uid"] for row in inputs]
        scored = super()._generate_and_score_completions(inputs)
        assert self._rollout is not None
        self.watched.show_groups(
            self._rollout,
            scored["advantages"],
            self.state.global_step,
            self.num_iterations,
            self.accelerator.is_main_process,
        )
        if self.algorithm.importance is not None:
            self._weigh(scored, self.algorithm.importance)
        return scored

    def _draw(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """SEAM 1: pictures for the rows at hand, and their scores."""
        uids = self._uids
        first = self.accelerator.process_index * len(uids)
        members = [(first + row) % self.num_generations for row in range(len(uids))]
        self.store.keep_only(uids)
        self._remembered = self.state.global_step, self.composite.save_state()
        scales_N = self.passes.scales(uids)
        if scales_N is not None:
            self.watched.add({"guidance/mean": self._gathered(scales_N).mean().item()})
        parts = []
        with self.clock.phase("rollout"), self._policy() as policy, self.passes.sampler_autocast(policy, uids):
            for rows in chunks_of(uids, self.algorithm.rollout.chunk):
                given = (uids[rows], members[rows], self.passes.sampling, self.args.seed)
                scales = None if scales_N is None else scales_N[rows]
                parts.append(roll_out(policy, self.store, *given, scales_N=scales, engine=self.engine))
                self.scoring.add(parts[-1], self.state.global_step)
        self._rollout = Rollout.join(parts)
        with self.clock.phase("reward"):
            self._score(self._rollout, self.scoring.scores(), first)
        return {
            "prompt_ids": [[uid, row] for row, uid in enumerate(uids)],
            "completion_ids": self._rollout.tokens_NL.tolist(),
            "logprobs": None,  # ours stay in self._rollout; trl's own use of them is for vLLM
        }

    @contextmanager
    def _policy(self) -> Iterator[MentorForConditionalGeneration]:
        """The policy without its wrappers, whole on this process."""
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        with whole(policy):
            yield policy

    def _score(self, rollout: Rollout, scores: CompositeScores, first: int) -> None:
        """What rewards say of the rollout; statistics are over all processes, and so is the failure of a reward.

        Raises:
            RewardFailure: on all processes alike; one that went on would wait for the others for ever.
        """
        scores = self._of_all_processes(scores, first)
        if scores.failure is not None:
            raise scores.failure
        uids = self._gathered(torch.tensor(rollout.group_ids)).tolist()
        self.watched.record(rollout, scores, uids, self.state.global_step + 1, self.accelerator.is_main_process)
        values_NR = for_trl(scores.matrix(), uids, self.args.multi_objective_aggregation, self.composite.spread_floors)
        mine_NR = values_NR[first : first + len(rollout)]
        for name, column in zip(self.composite.trained, mine_NR.T, strict=True):
            self._columns[name] = _or_none(column.tolist())

    def _column(self, name: str) -> Callable[..., list[float | None]]:
        """What trl takes for a reward function: hands over a column of the composite."""

        def column(**_: Any) -> list[float | None]:
            return self._columns[name]

        column.__name__ = name
        return column

    def _of_all_processes(self, scores: CompositeScores, first: int) -> CompositeScores:
        """The same scores for the global batch, of which these begin at row ``first``; other processes keep their
        reasons to themselves, and details stay behind.
        """
        if self.accelerator.num_processes == 1:
            return scores
        names = list(scores.raw)
        native_NM = np.stack([scores.native(name) for name in names], axis=1)
        applies_NM = np.stack([np.array(scores.applies[name]) for name in names], axis=1)
        native, applies = self._gathered(torch.from_numpy(native_NM)), self._gathered(torch.from_numpy(applies_NM))
        raw = {name: _or_none(column) for name, column in zip(names, native.T.tolist(), strict=True)}
        applied = dict(zip(names, applies.T.tolist(), strict=True))
        before, after = [None] * first, [None] * (len(native) - first - len(scores))
        reasons = {name: [*before, *own, *after] for name, own in scores.reasons.items()}
        return self.composite.judged(dataclasses.replace(scores, raw=raw, applies=applied, reasons=reasons, details={}))

    def _gathered(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of all processes, in their order, on the CPU."""
        if self.accelerator.num_processes == 1:
            return rows.cpu()
        return self.accelerator.gather(rows.to(self.accelerator.device)).cpu()

    # ---- log-probs -------------------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """SEAM 3: log-probs of policy or reference for rows in any order, ``batch_size`` at a time."""
        tokens_NL, uids_N, rows_N = input_ids[:, -logits_to_keep:], input_ids[:, 0].tolist(), input_ids[:, 1]
        is_reference, update = model is self.ref_model, torch.is_grad_enabled()
        if not (is_reference or update or compute_entropy or self._scores_rollouts):
            assert self._rollout is not None
            return self._rollout.sampler_logp_NL[rows_N], None, None
        owner = REFERENCE if is_reference else POLICY
        entropy: EntropyMode = "none"
        if compute_entropy:
            entropy = "gradient" if update and self.algorithm.entropy.active else "value"
        size = batch_size or len(tokens_NL)
        parts = []
        with self.clock.phase("reference" if is_reference else None if update else "old"):
            if is_reference:
                self.passes.read(model, uids_N, tokens_NL.device, owner)
            for start in range(0, len(tokens_NL), size):
                piece = slice(start, start + size)
                parts.append(self.passes.logprobs(model, uids_N[piece], tokens_NL[piece], owner, entropy))
        logp_NL, entropy_NL = (torch.cat(column) for column in zip(*parts, strict=True))
        sampled_by_it = self.state.global_step % self.num_iterations == 0  # no update since the rollout
        if not is_reference and sampled_by_it and update is not self._scores_rollouts:
            self._watch_gap(logp_NL.detach(), rows_N)
        return logp_NL, entropy_NL if compute_entropy else None, None

    @property
    def _scores_rollouts(self) -> bool:
        """Whether a pass without gradient finds the log-probs of a rollout before its updates.

        Not where the sampler's own will do: float32, and of the distribution that is optimised.
        """
        if self.algorithm.importance is not None:
            return True
        exact = self.passes.same_distribution and not self.args.bf16 and self.algorithm.sampler_dtype is None
        return self.num_iterations > 1 and not exact

    def _weigh(self, scored: dict[str, torch.Tensor], importance: Importance) -> None:
        """Importance weights into the advantages; trl takes one per token, and hands vespo's weights to vespo."""
        assert self._rollout is not None
        tokens_NL, logp_NL = scored["completion_ids"], scored.get("old_per_token_logps")
        if logp_NL is None:
            ids, mask = (torch.cat([scored[f"prompt_{x}"], scored[f"completion_{x}"]], dim=1) for x in ("ids", "mask"))
            with torch.no_grad():
                size = self.args.per_device_train_batch_size
                logp_NL = self._get_per_token_logps_and_entropies(self.model, ids, mask, tokens_NL.shape[1], size)[0]
        sampler_logp_NL = self._rollout.sampler_logp_NL[scored["prompt_ids"][:, 1]]
        weights_NX = importance_weights(logp_NL, sampler_logp_NL, importance.cap, importance.level)
        if self.algorithm.loss == "vespo":
            scored["importance_sampling_ratio"] = weights_NX
        else:
            scored["advantages"] = scored["advantages"][:, None] * weights_NX
        everywhere_NX = self._gathered(weights_NX)
        capped_NX = everywhere_NX >= importance.cap
        self.watched.add(
            {"importance/mean": everywhere_NX.mean().item(), "importance/capped": capped_NX.double().mean().item()}
        )

    def _watch_gap(self, logp_NL: torch.Tensor, rows_N: torch.Tensor) -> None:
        """Compare log-probs by the weights of the rollout with the sampler's own.

        Raises:
            UserError: in the first rollout of a session, when they differ by more than rounding.
        """
        assert self._rollout is not None
        gap_NL = self.gap.record(logp_NL, self._rollout.sampler_logp_NL[rows_N])
        if self._first_rollout and self.passes.same_distribution:
            rounded = self.args.bf16 or self.algorithm.sampler_dtype == "bfloat16"
            check_gap(gap_NL, "bf16" if rounded else "float32", self.passes.amplified, self.state.global_step)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self._first_rollout = False
        return loss

    # ---- what is watched and written ---------------------------------------------------------------------------------

    def watch(self, step: int) -> None:
        """Draw and score the fixed prompts. All processes draw (they may share the weights), the main one scores."""
        count = len(self.fixed.prompts)
        with undisturbed_randomness():
            with self._policy() as policy, self.accelerator.autocast():
                scales_N = self.passes.scales(range(count), MONITOR_SEED)
                given = (range(count), [0] * count, self.passes.sampling, MONITOR_SEED, MONITOR_STREAM)
                rollout = roll_out(policy, self.fixed_store, *given, scales_N=scales_N)
            metrics = self.fixed.record(rollout, step) if self.accelerator.is_main_process else {}
        self.watched.add(metrics)
        if self.keep_best is not None:
            self.keep_best(step, metrics)
        if step == 0:
            self.log({})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """SEAM 5: of trl's metrics those that mean something for pictures, and ours."""
        trls = self._metrics["train"]
        kept = defaultdict(list, {ours: trls[theirs] for theirs, ours in KEPT_METRICS.items() if theirs in trls})
        self._metrics["train"] = kept
        if "loss" in logs:
            speed = self.clock.metrics(self.args.generation_batch_size, self.args.max_completion_length)
            logs |= self.gap.metrics(self._gathered) | speed | peak_memory()
        logs |= self.watched.take()
        super().log(logs, start_time)

    def write_state_parts(self, folder: Path) -> None:
        remembered = self.composite.save_state()
        if remembered:
            write_atomically(folder / self._rewards_file, json.dumps(remembered))
        if self.mover is not None and self.is_world_process_zero():
            self.mover.save(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """All of a state but the weights, which each engine reads by a way of its own."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        remembered = Path(checkpoint) / self._rewards_file
        self.composite.load_state(json.loads(remembered.read_text(encoding="utf-8")) if remembered.exists() else {})
        if self.mover is not None:
            self.mover.load(Path(checkpoint))

    @property
    def _rewards_file(self) -> str:
        return f"rewards_{self.accelerator.process_index}.json"  # each process scores its own pictures

    def save_now(self) -> None:
        """Save a state outside of the usual rhythm, unless it is there already or a rollout is half used up."""
        step = self.state.global_step
        saved = (Path(self.args.output_dir) / f"{PREFIX}{step}").exists()
        if step > 0 and step % self.num_iterations == 0 and not saved:
            if self._remembered[0] == step:  # the rollout that failed is drawn and scored again
                self.composite.load_state(self._remembered[1])
            self._save_checkpoint(self.model, trial=None)
            self.callback_handler.on_save(self.args, self.state, self.control)

    # ---- transformers.Trainer ----------------------------------------------------------------------------------------

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Warm-up and cosine, stepped once per optimizer step; as in the supervised stages."""
        if self.lr_scheduler is None:
            self.lr_scheduler: LambdaLR | None = LambdaLR(optimizer or self.optimizer, self.lr_schedule)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices and tables decay; gains, biases and single vectors do not."""
        return [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer's estimate walks all modules at each step."""
        return 0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None in states: the model card is the export's."""

    def callback(self, kind: type[Any]) -> Any:
        """The callback of this class."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, kind))

    def _send_telemetry(self) -> None:
        """Nothing is reported."""


def _or_none(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]
