"""Rewards of mentor_rewards as the judge of a benchmark: any composite that a recipe can name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardBatch, RewardEntry
from mentor_rewards.registry import BUILT_IN

from mentor_rl.evaluate.benchmark import Facts, Sample, Unscored


class RewardScorer:
    """Named rewards; facts are {entry: score in native units}, None where a reward does not apply.

    Args:
        entries: as in a GRPO recipe; weights and roles mean nothing here. An entry without ``device`` goes to the
            process's device.

    Raises:
        RewardError: an entry that cannot be used as given; now, and not after hours of drawing.
    """

    def __init__(self, entries: Mapping[str, RewardEntry]) -> None:
        watched = {"role": "monitor"}  # so that one whose lower scores are better needs no scale to turn it
        self.entries = {name: entry.model_copy(update=watched) for name, entry in entries.items()}
        Composite(self.entries)  # reads no weights
        self._composite: Composite | None = None

    def load(self, device: str) -> None:
        """Bring all rewards to their devices."""
        placed = {
            name: entry if "device" in entry.model_fields_set else entry.model_copy(update={"device": device})
            for name, entry in self.entries.items()
        }
        self._composite = Composite(placed)
        self._composite.load()

    def check(self) -> None:
        """Refuse rewards whose files are missing, or whose server does not answer."""
        composite = Composite(self.entries)
        composite.check_files()
        composite.check_servers()

    def unload(self) -> None:
        """Free them."""
        if self._composite is not None:
            self._composite.unload()

    @property
    def judge(self) -> str:
        """Every reward with version, options and the checksums of its weights."""
        assert self._composite is not None
        return "; ".join(
            f"{name} ({entry.use or name} {spec.version}{_options(entry)}{_weights(spec.weights)})"
            for (name, entry), spec in zip(self.entries.items(), self._composite.specs.values(), strict=True)
        )

    @property
    def all_built_in(self) -> bool:
        """Whether no plugin is among them."""
        return all((entry.use or name) in BUILT_IN for name, entry in self.entries.items())

    def score(self, samples: Sequence[Sample]) -> list[Facts | Unscored]:
        """One call of all rewards, against the fact ``prompt`` of an item where it has one, else against its text."""
        assert self._composite is not None
        prompts = [sample.item.prompt() for sample in samples]
        groups: dict[str, int] = {}
        scores = self._composite.score(
            RewardBatch(
                images=[sample.image for sample in samples],
                prompts=[s.item.facts.get("prompt", p.plain_text) for p, s in zip(prompts, samples, strict=True)],
                references=[prompt.images for prompt in prompts],
                subjects=[prompt.subject for prompt in prompts],
                group_ids=[groups.setdefault(sample.item.id, len(groups)) for sample in samples],
                metadata=[
                    {**prompt.meta, **sample.item.facts} for prompt, sample in zip(prompts, samples, strict=True)
                ],
            ),
            tolerate=True,
        )
        out: list[Facts | Unscored] = []
        for row in range(len(samples)):
            failed = [n for n in scores.raw if scores.raw[n][row] is None and scores.applies[n][row]]
            if failed:
                out.append(Unscored(f"{failed[0]}: {scores.reasons[failed[0]][row]}"))
            else:
                out.append({name: values[row] for name, values in scores.raw.items()})
        return out


def _options(entry: RewardEntry) -> str:
    return f" {json.dumps(entry.options, default=str, sort_keys=True)}" if entry.options else ""


def _weights(weights: Mapping[str, str]) -> str:
    return "".join(f" {file} {checksum[:12]}" for file, checksum in weights.items())
