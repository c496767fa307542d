"""What a supervised stage feeds its model: rows that are pure functions of (seed, index), and the batches made of them.

Shapes: N samples, L image tokens, T prefix length, M reference pictures of the batch, H rows and W columns of pixels.

Because a row depends on nothing but the seed and its place in the run, batching, gradient accumulation, the number of
processes and a resume in mid-run cannot change what the model sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from mentor_base.data.mixture import MixtureDataset, World
from mentor_base.data.schema import Example
from mentor_base.data.targets import target_pixels
from mentor_base.errors import UserError
from mentor_base.processor import MentorProcessor
from mentor_base.settings import Mixture
from mentor_base.vq import VQModel


class Row(NamedTuple):
    """One training row.

    Attributes:
        example: prompt and target.
        drop: whether the prefix is replaced by the unconditional table (classifier-free guidance).
    """

    example: Example
    drop: bool


class StageDataset(Dataset[Row]):
    """Row ``i`` of a stage: the mixture's example, and whether its condition is dropped.

    Raises:
        UserError: a task of the mixture that the world does not have.
    """

    def __init__(self, mixture: Mixture, seed: int, length: int, world: World) -> None:
        self.seed, self.condition_drop = seed, mixture.condition_drop
        self.examples = MixtureDataset(mixture, "train", seed, length, world=world)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Row:
        drop = Random(f"condition-drop/{self.seed}/{index}").random() < self.condition_drop
        return Row(self.examples[index], drop)


class Collator:
    """Rows -> the keyword arguments of the model's loss mode.

    input_ids_NT, attention_mask_NT, pixel_values (references_M3HW or None), condition_drop_N (bool), and the targets:
    tokens_NL where the rows carry their codes, else target_pixels_N3HW in [-1, 1] at the tokenizer's size.
    """

    def __init__(self, processor: MentorProcessor, vq: VQModel) -> None:
        self.processor = processor
        self.image_size, self.codebook_size = int(vq.config.image_size), int(vq.config.codebook_size)
        self.length, self.fingerprint = vq.config.tokens, vq.fingerprint()

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """
        Raises:
            UserError: codes of another tokenizer, or only some rows with codes; names the row.
        """
        examples = [row.example for row in rows]
        return {
            **self.processor(examples),
            **self._targets(examples),
            "condition_drop": torch.tensor([row.drop for row in rows]),
        }

    def _targets(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        bare = next((example for example in examples if example.codes is None), None)
        if bare is None:
            return {"tokens": torch.tensor([self._tokens(example) for example in examples])}
        coded = next((example for example in examples if example.codes is not None), None)
        if coded is not None:
            raise UserError(
                f"{_place(bare)}: codes: expected them as in {_place(coded)}, found none; "
                "encode all rows (`mentor data encode`), or none"
            )
        pairs = [(example.task, example.target) for example in examples]
        return {"target_pixels": target_pixels(pairs, self.image_size)}

    def _tokens(self, example: Example) -> tuple[int, ...]:
        assert example.codes is not None
        tokenizer, tokens = example.codes
        if tokenizer != self.fingerprint:
            raise UserError(
                f"{_place(example)}: codes: expected those of the policy's tokenizer {self.fingerprint}, "
                f"found those of {tokenizer}; encode the rows again (`mentor data encode`)"
            )
        if len(tokens) != self.length or max(tokens) >= self.codebook_size:
            raise UserError(
                f"{_place(example)}: codes.tokens: expected {self.length} numbers below {self.codebook_size}, "
                f"found {len(tokens)} up to {max(tokens)}"
            )
        return tokens


def _place(example: Example) -> str:
    return str(example.meta.get("where", "example"))
