"""The projector stage: a picture's caption, written by T5's own decoder from what the policy's encoder makes of it.

    picture -> vision tower -> connector -> T5 encoder -> T5 decoder -> caption

Tower and T5 are frozen, so that the connector learns to say pictures in T5's own embedding space, as in LLaVA's first
stage (arXiv 2304.08485). Rows are those of t2i, read the other way round: the target picture is given, the text is to
be written. The prompt is the bare picture, as in LLaVA's pre-training.

The T5 decoder is no part of the policy and not in its states and checkpoints: it never changes.

Deviations from LLaVA's trainer, whose log MENTOR published:
- each caption counts alike, whatever its length, so that gradients of accumulated batches equal those of the large
  one; there all tokens of a micro-batch count alike.
- the decoder's dropout is off, since it is frozen; that of the T5 encoder is on in training, as there.

Shapes: N samples, T prefix slots, S caption tokens with the end-of-text token, V words, C encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from mentor_base.checkpoint import model_folder, strict_from_pretrained
from mentor_base.data.schema import IMAGE_MARK, Example, Prompt
from mentor_base.errors import UserError
from mentor_base.model import MentorForConditionalGeneration, MentorOutput
from mentor_base.objective import captioned_sheet
from mentor_base.prefix import Prefix
from mentor_base.processor import MentorProcessor
from mentor_base.settings import Validation
from mentor_base.stage_data import Row

IGNORED = -100  # the label of padding
LONGEST_SAMPLE = 48  # tokens of a caption on a sheet


class CaptionTokens:
    """Write the caption; an Objective (objective.py).

    Args:
        t5: a whole T5 whose encoder is the policy's; only its decoder is kept.

    Raises:
        UserError: a T5 of other sizes than the policy's text encoder.
    """

    def __init__(
        self, policy: MentorForConditionalGeneration, processor: MentorProcessor, t5: T5ForConditionalGeneration
    ) -> None:
        expected: T5Config = policy.config.t5_config
        for name in ("d_model", "vocab_size"):
            ours, found = getattr(expected, name), getattr(t5.config, name)
            if ours != found:
                raise UserError(
                    f"stage.captioner: {name}: expected that of the policy's text encoder, {ours}, found {found}"
                )
        del t5.encoder  # half of its memory
        self.t5, self.processor = t5.requires_grad_(False).eval(), processor

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """input_ids_NT, attention_mask_NT, pixel_values_N3HW (what "encode" takes), labels_NS (IGNORED at padding).

        ``Row.drop`` has no meaning here: there is no guidance.
        """
        examples = [row.example for row in rows]
        tokenizer = self.processor.tokenizer
        texts = tokenizer([example.text for example in examples], add_special_tokens=False)["input_ids"]
        captions = [torch.tensor([*text, tokenizer.eos_token_id]) for text in texts]
        labels_NS = torch.nn.utils.rnn.pad_sequence(captions, batch_first=True, padding_value=IGNORED)
        return {**self.processor([bare_picture(example) for example in examples]), "labels": labels_NS}

    def loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> MentorOutput:
        """loss_N: mean cross-entropy of each caption's tokens; loss: their mean."""
        prompt = {name: value for name, value in inputs.items() if name != "labels"}
        loss_N = self.caption_losses(model(mode="encode", **prompt), inputs["labels"])
        return MentorOutput(loss=loss_N.mean(), loss_N=loss_N)

    def caption_losses(self, prefix: Prefix, labels_NS: torch.Tensor) -> torch.Tensor:
        """loss_N of captions, given the encoder's output."""
        t5 = self._on(prefix.features_KTC.device)
        logits_NSV = t5(
            encoder_outputs=BaseModelOutput(prefix.features_KTC.to(t5.dtype)),
            attention_mask=prefix.mask_KT,
            decoder_input_ids=t5.prepare_decoder_input_ids_from_labels(labels_NS),
            use_cache=False,
        ).logits
        losses_NS = F.cross_entropy(
            logits_NSV.float().transpose(1, 2), labels_NS, ignore_index=IGNORED, reduction="none"
        )
        return losses_NS.sum(1) / (labels_NS != IGNORED).sum(1)

    @torch.no_grad()
    def write(self, policy: MentorForConditionalGeneration, examples: Sequence[Example]) -> list[str]:
        """The likeliest caption, word by word, of each example's picture."""
        inputs = self.processor([bare_picture(example) for example in examples])
        on_device = {name: None if value is None else value.to(policy.device) for name, value in inputs.items()}
        prefix: Prefix = policy(mode="encode", **on_device)
        t5 = self._on(policy.device)
        tokens_NS = t5.generate(
            encoder_outputs=BaseModelOutput(prefix.features_KTC.to(t5.dtype)),
            attention_mask=prefix.mask_KT.long(),
            max_new_tokens=LONGEST_SAMPLE,
            do_sample=False,
            eos_token_id=self.processor.tokenizer.eos_token_id,
        )
        captions: list[str] = self.processor.tokenizer.batch_decode(tokens_NS, skip_special_tokens=True)
        return captions

    def sheet(
        self, policy: MentorForConditionalGeneration, examples: Sequence[Example], settings: Validation, batch: int
    ) -> Image.Image:
        """One row per example: the picture, and under it what is written of it."""
        captions = [
            caption
            for start in range(0, len(examples), batch)
            for caption in self.write(policy, examples[start : start + batch])
        ]
        side = self.processor.image_size
        return captioned_sheet([[example.target.resize((side, side))] for example in examples], captions)

    def _on(self, device: torch.device) -> T5ForConditionalGeneration:
        """The decoder on the policy's device, which a trainer decides after this object is made."""
        if self.t5.device != device:
            self.t5.to(device)
        return self.t5


def bare_picture(example: Example) -> Prompt:
    """The prompt that asks for a caption of the example's target."""
    return Prompt(IMAGE_MARK, (example.target,), example.subject, example.meta)


def load_t5(path: str, dtype: torch.dtype) -> T5ForConditionalGeneration:
    """A whole T5 from a folder of transformers.

    Raises:
        UserError: another model, or missing, unknown or misshapen tensors.
    """
    t5: T5ForConditionalGeneration = strict_from_pretrained(
        T5ForConditionalGeneration.from_pretrained, T5Config.model_type, str(model_folder(path)), dtype=dtype
    )
    return t5
