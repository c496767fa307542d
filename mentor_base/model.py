"""MentorForConditionalGeneration: text and pictures in, image tokens out (MENTOR, arXiv 2507.09574, section 3).

Multimodal encoder (encoder.py) -> prefix -> LlamaGen decoder (decoder.py) over the codes of a frozen tokenizer (vq.py).

Everything that touches a parameter goes through ``model(mode=...)``, so that the hooks of DDP, ZeRO and FSDP fire.
Shapes: K prompts, G images a prompt (N = K * G, group-contiguous), T prefix slots, L image tokens, D width, V codes,
C encoder width, M pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from mentor_base.config import MentorConfig
from mentor_base.decoder import Decoder, RMSNorm
from mentor_base.decoder_cache import DecoderCache, Tables
from mentor_base.encoder import MultimodalEncoder
from mentor_base.engines import dealt_out
from mentor_base.errors import UserError, nearest
from mentor_base.guidance import CHUNK_ROWS, EntropyMode, TokenLogProbs, token_logprobs
from mentor_base.images import to_images
from mentor_base.prefix import Prefix
from mentor_base.prompt_batch import PromptBatch, length_buckets
from mentor_base.query_connector import QueryConnector
from mentor_base.settings import Sampling
from mentor_base.vq import VQModel

PARTS = {  # by the names of settings.TrainedParts, and the tokenizer
    "vision": "encoder.vision",
    "connector": "encoder.connector",
    "text_encoder": "encoder.text",
    "decoder": "decoder",
    "vq": "vq",
}
MODES = ("encode", "loss", "hidden", "prefill", "step", "logprobs")


@dataclass
class MentorOutput(ModelOutput):
    """Attributes: loss: mean over samples. loss_N: mean negative log-likelihood (nats per token) of each sample."""

    loss: torch.Tensor | None = None
    loss_N: torch.Tensor | None = None


class MentorForConditionalGeneration(PreTrainedModel):
    """A MENTOR policy of any size. ``vq`` is a part of it, always frozen and in eval mode."""

    config_class = MentorConfig
    config: MentorConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # our loss is a mean per call: a trainer has to divide when it accumulates
    _keys_to_ignore_on_save = ["encoder.text.encoder.embed_tokens.weight"]  # noqa: RUF012  tied: no resume misses it
    _supports_sdpa = True
    _no_split_modules = ["Block", "T5Block", "CLIPEncoderLayer"]  # noqa: RUF012

    def __init__(self, config: MentorConfig) -> None:
        super().__init__(config)
        self.vq = VQModel(config.vq_config)
        self.encoder = MultimodalEncoder(config, self.vq.trunk_width)
        self.decoder = Decoder(config)
        self.generation_config = GenerationConfig()
        self.warnings_issued: dict[str, bool] = {}  # trl writes into it
        self.post_init()
        present = {type(module).__name__ for module in self.modules()}
        # FSDP refuses the name of a class that is not there. post_init has made a set of the list.
        self._no_split_modules = present.intersection(self._no_split_modules)  # type: ignore[assignment]
        tied = self.encoder.text.all_tied_weights_keys  # transformers collects those of direct children only
        self.all_tied_weights_keys.update({f"encoder.text.{k}": f"encoder.text.{v}" for k, v in tied.items()})
        self._freeze_vq()

    # ---- what callers use ------------------------------------------------------------------------------------------

    def forward(self, mode: str = "loss", **kwargs: Any) -> Any:
        """Dispatch to one of MODES.

        - "encode": what the processor gives: input_ids_KT, attention_mask_KT (left-padded), pixel_values_M3HW or None,
          guide_ids_MG, guide_mask_MG (query connector) -> Prefix
        - "loss": the same, and target_pixels_N3HW or tokens_NL, condition_drop (bool N, optional) -> MentorOutput
        - "hidden": prefix, tokens_NL, group_size, unconditional -> hidden_NLD, whose row l predicts token l
        - "prefill": prefix, group_size, unconditional or guided -> (hidden_ND for token 0, cache)
        - "step": tokens_N, cache -> hidden_ND
        - "logprobs": prefix or the inputs of "encode", tokens_NL, group_size, sampling, logprob, scales_N (optional)
          -> TokenLogProbs

        With ``guided=True`` "hidden" and "prefill" work on both halves in one batch: the conditional rows come first.
        """
        modes: dict[str, Callable[..., Any]] = {
            "encode": self._encode,
            "loss": self._loss,
            "hidden": self._hidden,
            "prefill": self._prefill,
            "step": self._step,
            "logprobs": self._logprobs,
        }
        if mode not in modes:
            raise ValueError(f"MentorForConditionalGeneration: unknown mode '{mode}'; {nearest(mode, MODES)}")
        return modes[mode](**kwargs)

    def head_weight(self) -> torch.Tensor:
        """weight_VD: the output head as a plain matrix, with gradient."""
        return self._tables().head_VD

    @torch.no_grad()
    def decode_images(self, tokens_NL: torch.Tensor) -> list[Image.Image]:
        """tokens_NL -> PIL pictures."""
        return to_images(self.vq.decode(tokens_NL))

    def fold(self) -> MentorForConditionalGeneration:
        """A copy with plain token tables: the same function, without ``factorised_codebook``."""
        config = copy.deepcopy(self.config)
        config.factorised_codebook = False
        folded = MentorForConditionalGeneration(config)
        state = {key: value for key, value in self.state_dict().items() if ".codebook_" not in key}
        tables = self._tables()
        state["decoder.embedding.weight"], state["decoder.head.weight"] = tables
        folded.load_state_dict(state)
        folded.to(device=self.device, dtype=self.dtype)
        return folded.train(self.training)

    # ---- modes -----------------------------------------------------------------------------------------------------

    def _encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        guide_ids: torch.Tensor | None = None,
        guide_mask: torch.Tensor | None = None,
    ) -> Prefix:
        slots = input_ids.shape[1]
        if slots > self.config.context_length:
            raise UserError(f"prompt: expected at most {self.config.context_length} prefix slots, found {slots}")
        prefix: Prefix = self.encoder(input_ids, attention_mask, pixel_values, self.vq, guide_ids, guide_mask)
        return prefix

    def _loss(
        self,
        target_pixels: torch.Tensor | None = None,
        tokens: torch.Tensor | None = None,
        condition_drop: torch.Tensor | None = None,
        **inputs: Any,
    ) -> MentorOutput:
        if (tokens is None) == (target_pixels is None):
            raise ValueError("mode 'loss': expected either tokens or target_pixels")
        if tokens is None:
            pixels = cast(torch.Tensor, target_pixels)
            with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):  # the codes `data encode` makes
                tokens = self.vq.encode(pixels)
        if condition_drop is None:
            condition_drop = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        batch, tables = PromptBatch(**inputs), self._tables()
        loss_N = torch.zeros(len(tokens), device=tokens.device)
        lengths = batch.attention_mask.sum(1).tolist()
        for rows in [torch.arange(len(lengths))] if dealt_out(self) else length_buckets(lengths):
            index = rows.to(tokens.device)
            part = batch.rows(index, self.config.placeholder_id, self.config.picture_slots)
            losses = self._row_losses(part, tokens[index], condition_drop[index], tables)
            loss_N = loss_N.index_add(0, index, losses)
        return MentorOutput(loss=loss_N.mean(), loss_N=loss_N)

    def _row_losses(
        self, batch: PromptBatch, tokens_NL: torch.Tensor, drop_N: torch.Tensor, tables: Tables
    ) -> torch.Tensor:
        """loss_N of rows whose prompts are of similar length."""
        prefix = self.decoder.with_drop(self._encode(*batch), drop_N)
        hidden = self.decoder.hidden(prefix, tokens_NL, 1, tables)
        return -token_logprobs(hidden, None, tokens_NL, tables.head_VD, Sampling(), entropy="none").logp_NL.mean(1)

    def _hidden(
        self,
        prefix: Prefix,
        tokens: torch.Tensor,
        group_size: int = 1,
        unconditional: bool = False,
        guided: bool = False,
    ) -> torch.Tensor:
        self._check_group(prefix, tokens, group_size)
        if guided:
            tokens = torch.cat([tokens, tokens])
        return self.decoder.hidden(self._half(prefix, unconditional, guided), tokens, group_size, self._tables())

    def _prefill(
        self,
        prefix: Prefix,
        group_size: int = 1,
        unconditional: bool = False,
        guided: bool = False,
        prepare: bool = False,
    ) -> tuple[torch.Tensor, DecoderCache]:
        return self.decoder.prefill(self._half(prefix, unconditional, guided), group_size, self._tables(), prepare)

    def _step(self, tokens: torch.Tensor, cache: DecoderCache) -> torch.Tensor:
        return self.decoder.step(tokens, cache)

    def _logprobs(
        self,
        tokens: torch.Tensor,
        group_size: int = 1,
        sampling: Sampling | None = None,
        logprob: Literal["guided", "conditional"] = "guided",
        prefix: Prefix | None = None,
        chunk: int = CHUNK_ROWS,
        entropy: EntropyMode = "value",
        scales: torch.Tensor | None = None,
        **inputs: Any,
    ) -> TokenLogProbs:
        """``logprob="conditional"`` leaves guidance out; that is another distribution than the one sampled."""
        sampling = sampling or Sampling()
        if logprob not in ("guided", "conditional"):
            raise ValueError(f"logprob: expected 'guided' or 'conditional', found '{logprob}'")
        if logprob == "conditional":
            sampling, scales = sampling.model_copy(update={"guidance_scale": 1.0}), None
        if prefix is None:
            prefix = self._encode(**inputs)
        self._check_group(prefix, tokens, group_size)
        tables, guided = self._tables(), sampling.guided or scales is not None
        both = torch.cat([tokens, tokens]) if guided else tokens
        hidden = self.decoder.hidden(self._half(prefix, False, guided), both, group_size, tables)
        cond, uncond = hidden.chunk(2) if guided else (hidden, None)
        return token_logprobs(cond, uncond, tokens, tables.head_VD, sampling, chunk, entropy, scales)

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _tables(self) -> Tables:
        return self.decoder.tables(self.vq.codebook.detach())

    def _half(self, prefix: Prefix, unconditional: bool, guided: bool) -> Prefix:
        if guided:
            return Prefix.join([prefix, self.decoder.unconditional(prefix)])
        if unconditional:
            return self.decoder.unconditional(prefix)
        if self.training and self.config.uncond == "learned":
            # Unused in this pass, but a sharded trainer wants a gradient for each parameter.
            return prefix._replace(features_KTC=prefix.features_KTC + 0.0 * self.decoder.uncond.sum())
        return prefix

    def _check_group(self, prefix: Prefix, tokens: torch.Tensor, group_size: int) -> None:
        expected = (prefix.mask_KT.shape[0] * group_size, self.config.image_tokens)
        if tuple(tokens.shape) != expected:
            raise ValueError(
                f"tokens: expected {expected} for {expected[0] // group_size} prompts in groups of {group_size}, "
                f"found {tuple(tokens.shape)}"
            )

    # ---- transformers ----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a folder. float32 unless ``dtype`` says otherwise.

        Raises:
            UserError: a tensor is missing, unknown or of another shape, or another kind of model. Nothing is dropped
                or invented.
        """
        from mentor_base.checkpoint import strict_from_pretrained

        loaded = strict_from_pretrained(super().from_pretrained, MentorConfig.model_type, path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._freeze_vq()
        return loaded

    def train(self, mode: bool = True) -> MentorForConditionalGeneration:
        super().train(mode)
        self.vq.train(False)
        return self

    def enable_input_require_grads(self) -> None:
        """Nothing: our checkpointing is not reentrant, and a frozen encoder would be run backward for nobody."""

    def get_input_embeddings(self) -> None:
        """None, as ``get_output_embeddings``: both tables are read (``Decoder.tables``) and never called, so that an
        engine which wraps them by themselves, as FSDP2 in accelerate does, would never gather them.
        """

    def get_output_embeddings(self) -> None:
        """See ``get_input_embeddings``."""

    def _freeze_vq(self) -> None:
        self.vq.requires_grad_(False)
        self.vq.eval()

    def _init_weights(self, module: nn.Module) -> None:
        """LlamaGen's: N(0, 0.02), head zero, unconditional table N(0, 1 / C). Small sizes: see build.py."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, QueryConnector):
            init.normal_(module.queries, std=0.02)
        elif isinstance(module, Decoder):
            init.zeros_(module.head.weight)
            init.normal_(module.uncond, std=self.config.text_width**-0.5)
