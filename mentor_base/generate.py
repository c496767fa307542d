"""The sampler: image tokens from prompts, and the log-probabilities with which it drew them.

All images have the same length, so a batch runs in step: static cache, no host synchronisation per token; with guidance
both halves go through the decoder as one batch.

Shapes: K prompts, G images a prompt (N = K * G, group-contiguous), L tokens, V codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from mentor_base.data.schema import Example, Prompt
from mentor_base.decoder_cache import DecoderCache
from mentor_base.guidance import policy_logits
from mentor_base.prefix import Prefix
from mentor_base.settings import Sampling

if TYPE_CHECKING:
    from mentor_base.decode_graph import DecodeEngine
    from mentor_base.model import MentorForConditionalGeneration
    from mentor_base.processor import MentorProcessor


class Generation(NamedTuple):
    """Attributes: tokens_NL: long. logp_NL: float32, the sampler's own log-probabilities under its ``sampling``."""

    tokens_NL: torch.Tensor
    logp_NL: torch.Tensor


class Drawn(NamedTuple):
    """Attributes: tokens_NL, logp_NL as in Generation, on the CPU. images: N PIL pictures."""

    tokens_NL: torch.Tensor
    logp_NL: torch.Tensor
    images: list[Image.Image]


class Decoding:
    """A batch of images in the making, one token at a time.

    Attributes:
        cache: of the decoder.
        hidden: states that predict the next token, [N, D]; conditional, then unconditional rows when guided.
        tokens_NL, logp_NL: what was drawn so far.
        uniforms_NL: decide the draws.
        scales_N1: guidance scales, where images have each their own.

    ``prepare``: have the weights ready for a loop of steps on a CPU (products.py); they must not change meanwhile.
    """

    def __init__(
        self,
        model: Any,
        prefix: Prefix,
        group_size: int,
        sampling: Sampling,
        generator: torch.Generator | None = None,
        uniforms_NL: torch.Tensor | None = None,
        scales_N: torch.Tensor | None = None,
        prepare: bool = True,
    ) -> None:
        self.model, self.sampling = model, sampling
        self.scales_N1 = None if scales_N is None else scales_N[:, None]
        self.guided = sampling.guided or scales_N is not None
        hidden, cache = model(mode="prefill", prefix=prefix, group_size=group_size, guided=self.guided, prepare=prepare)
        self.hidden: torch.Tensor = hidden
        self.cache: DecoderCache = cache
        count, device = prefix.mask_KT.shape[0] * group_size, hidden.device
        self.tokens_NL = torch.empty(count, cache.length, dtype=torch.long, device=device)
        self.logp_NL = torch.empty(count, cache.length, dtype=torch.float32, device=device)
        if uniforms_NL is None:
            shape = (count, cache.length)
            uniforms_NL = torch.rand(shape, dtype=torch.float64, device=device, generator=generator)
        self.uniforms_NL = uniforms_NL

    def choose(self, uniform_N1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of each image and its log-prob, [N, 1] each."""
        cond, uncond = self.hidden.chunk(2) if self.guided else (self.hidden, None)
        logits_NV = policy_logits(cond, uncond, self.cache.head, self.sampling, self.scales_N1)
        logp_NV = logits_NV.log_softmax(-1)
        tokens_N1 = draw_tokens(logp_NV.exp(), uniform_N1)
        return tokens_N1, logp_NV.gather(1, tokens_N1)

    def draw(self, place: int) -> torch.Tensor:
        """Draw token ``place`` of each image -> [N, 1]."""
        tokens_N1, logp_N1 = self.choose(self.uniforms_NL[:, place, None])
        self.tokens_NL[:, place], self.logp_NL[:, place] = tokens_N1[:, 0], logp_N1[:, 0]
        return tokens_N1

    def feed(self, tokens_N1: torch.Tensor) -> torch.Tensor:
        """Read the tokens just drawn -> the next ``hidden``."""
        fed = tokens_N1[:, 0].repeat(2) if self.guided else tokens_N1[:, 0]
        hidden: torch.Tensor = self.model(mode="step", tokens=fed, cache=self.cache)
        return hidden

    def run(self) -> None:
        """Draw all tokens."""
        for place in range(self.cache.length - 1):
            self.hidden = self.feed(self.draw(place))
        self.draw(self.cache.length - 1)


@torch.no_grad()
def generate(
    model: Any,
    prefix: Prefix,
    group_size: int,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    uniforms_NL: torch.Tensor | None = None,
    engine: DecodeEngine | None = None,
    scales_N: torch.Tensor | None = None,
) -> Generation:
    """Draw G images for each prompt of ``prefix``.

    ``model`` may be wrapped (DDP, FSDP, accelerate): it is only called. The draws are decided by ``generator``, which
    lives on the model's device, or by ``uniforms_NL`` in [0, 1), which a caller makes who wants them to depend on the
    prompt and not on the batch. An ``engine`` runs the same steps compiled or as CUDA graphs; see decode_graph.py.
    ``scales_N``: each image's own guidance scale, in place of ``sampling.guidance_scale``.
    """
    if engine is not None:
        prefix = engine.padded(prefix)
    decoding = Decoding(model, prefix, group_size, sampling, generator, uniforms_NL, scales_N, engine is None)
    if engine is not None:
        return engine.run(decoding)
    decoding.run()
    return Generation(decoding.tokens_NL, decoding.logp_NL)


def draw_tokens(probabilities_NV: torch.Tensor, uniform_N1: torch.Tensor) -> torch.Tensor:
    """One token per row -> [N, 1], by inverting the cumulative distribution in float64 at ``uniform_N1`` in [0, 1).

    ``torch.multinomial`` draws one random number per code and row, which on a CPU costs more than a small decoder's
    whole step; this draws one per row. A code of probability 0 is never drawn.
    """
    cumulative = probabilities_NV.double().cumsum(-1)
    places = torch.searchsorted(cumulative, uniform_N1.double() * cumulative[:, -1:], right=True)
    return places.clamp_(max=probabilities_NV.shape[1] - 1)


@torch.no_grad()
def draw(
    model: MentorForConditionalGeneration,
    processor: MentorProcessor,
    prompts: Sequence[Prompt | Example],
    group_size: int = 1,
    sampling: Sampling | None = None,
    batch: int = 64,
    seed: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Drawn:
    """Prompts to pictures, ``batch`` images at a time; ``progress`` is called with the number just finished.

    The seed is ``seed``, else ``sampling.seed``; the draws depend on neither ``batch`` nor the device. Leaves the model
    in the mode (train, eval) it was in.
    """
    sampling = sampling or Sampling()
    device = model.device
    generator = torch.Generator().manual_seed(sampling.seed if seed is None else seed)
    shape = (len(prompts) * group_size, model.config.image_tokens)
    uniforms_NL = torch.rand(shape, dtype=torch.float64, generator=generator)
    was_training = model.training
    model.eval()
    per_batch = max(1, batch // group_size)
    tokens, logps, images = [], [], []
    for start in range(0, len(prompts), per_batch):
        inputs = processor(prompts[start : start + per_batch])
        on_device = {key: None if value is None else value.to(device) for key, value in inputs.items()}
        prefix = model(mode="encode", **on_device)
        rows = slice(start * group_size, (start + per_batch) * group_size)
        made = generate(model, prefix, group_size, sampling, uniforms_NL=uniforms_NL[rows].to(device))
        tokens.append(made.tokens_NL.cpu())
        logps.append(made.logp_NL.cpu())
        images.extend(model.decode_images(made.tokens_NL))
        if progress is not None:
            progress(len(made.tokens_NL))
    model.train(was_training)
    if not tokens:
        empty = torch.empty(0, model.config.image_tokens)
        return Drawn(empty.long(), empty, [])
    return Drawn(torch.cat(tokens), torch.cat(logps), images)
