"""Every metric of metrics.jsonl: name, unit, meaning. The report shows this table; a test holds it against runs.

A name with ``<...>`` stands for one metric per entry. Unless it says otherwise, a value is of one optimizer step and
over all processes. Metrics of a rollout stand in the lines of steps that drew one (all, with one inner iteration).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One line of the table; ``unit`` is "" for pure numbers."""

    name: str
    unit: str
    meaning: str

    def fits(self, name: str) -> bool:
        """Whether a metric of this name is meant."""
        pattern = re.sub(r"<\w+>", "[^/]+", self.name)
        return re.fullmatch(pattern, name) is not None


EVERY_RUN = (
    Metric("step", "", "optimizer steps done"),
    Metric("seconds", "s", "work in this run folder, earlier sessions included"),
    Metric("cpu_seconds", "s", "CPU time of the main process and its finished children, earlier sessions included"),
    Metric("loss", "", "mean since the line before"),
    Metric("grad_norm", "", "norm of the gradient before it is clipped to optimisation.max_grad_norm"),
    Metric("lr", "", "learning rate of the step"),
    Metric("skipped_updates", "", "updates skipped since the line before, for a gradient that was no finite number"),
)
STAGES = (
    Metric("val/<task>", "nats/token", "held-out loss of a task; val/mean: over all tasks"),
    Metric("reference/<task>", "nats/token", "rise of that loss with another example's reference pictures"),
)
GRPO = (
    Metric("reward", "", "mean weighted sum of the scaled trained rewards"),
    Metric("rewards/<name>/mean", "native", "mean score; of rewards with role monitor too: trained against held-out"),
    Metric("rewards/<name>/std", "native", "standard deviation of the scores"),
    Metric("rewards/<name>/group_std", "native", "mean standard deviation within groups: the signal that GRPO sees"),
    Metric("rewards/<name>/missing", "share", "samples without a score, for whatever reason"),
    Metric("rewards/<name>/failed", "share", "samples to which the reward applies and that it could not score"),
    Metric("rewards/<name>/saturated", "share", "scores at the entry's clip, or at the bounds of the reward's range"),
    Metric("rewards/<name>/seconds", "s", "inside the reward, on the main process"),
    Metric("flat_groups", "share", "groups in which no trained reward tells one picture from another"),
    Metric("diversity", "share", "positions at which two pictures of a group have different tokens"),
    Metric("diversity_pixels", "0-1", "root mean square distance of two pictures of a group, as 16x16 RGB"),
    Metric("copies/share", "share", "pictures more like their reference than 95 % of the data's own answers"),
    Metric("copies/similarity", "", "mean correlation with the nearest reference"),
    Metric("hacking/<name>", "std", "evidence that trained rewards rise while this one gets worse; from step W on"),
    Metric("kl", "nats/token", "estimate of the KL divergence to the reference (k3); with beta above 0"),
    Metric("entropy", "nats/token", "of the distribution that is optimised"),
    Metric("entropy_coefficient", "", "weight of the entropy bonus, where there is one"),
    Metric("clip_share", "share", "tokens (ratio: token) or pictures (ratio: sequence) whose ratio was clipped"),
    Metric("vespo_weight", "", "mean weight that the loss vespo gives a picture"),
    Metric("gap/mean", "nats", "size of the difference of a token's log-prob, trainer less sampler"),
    Metric("gap/<quantile>", "nats", "its 50, 90 and 99 % quantiles and its maximum: p50, p90, p99, max"),
    Metric("ratio/mean", "", "importance ratio of a token, trainer over sampler"),
    Metric("ratio/max", "", "the largest such ratio"),
    Metric("importance/mean", "", "importance weight in the loss, where algorithm.importance is set"),
    Metric("importance/capped", "share", "importance weights at their cap"),
    Metric("guidance/mean", "", "guidance scale of the prompts, where each has its own"),
    Metric("seconds/<phase>", "s", "rollout, reward, reference, old (log-probs before the update), update: the rest"),
    Metric("pictures_per_second", "1/s", "pictures trained on per second of the whole step"),
    Metric("tokens_per_second", "1/s", "tokens drawn per second of the rollout"),
    Metric("memory/host", "GiB", "peak resident memory of the main process since it began"),
    Metric("memory/device", "GiB", "peak of torch's allocator on the main process' CUDA device in the step"),
    Metric("eval/reward", "", "as reward, on the fixed prompts: step 0, every monitoring.every steps, the last step"),
    Metric("eval/<name>", "native", "mean score on the fixed prompts, held-out rewards too"),
)
ALL = (*EVERY_RUN, *STAGES, *GRPO)


def meaning_of(name: str) -> Metric | None:
    """The table's line for a metric; the first that fits. None for one that the table does not know."""
    return next((metric for metric in ALL if metric.fits(name)), None)


def lines_for(names: Iterable[str]) -> list[Metric]:
    """The lines of the table that these metrics have, in its order."""
    found = [meaning_of(name) for name in names]
    return [metric for metric in ALL if metric in found]
