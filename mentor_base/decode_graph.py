"""The sampler's loop with static shapes: compiled by torch, or captured as CUDA graphs.

At small batches a step is bound by launching its kernels, not by running them; a graph launches all of them at once.
What a graph reads has to stay where it is, so the place in the picture lives on the device, the caches are those of the
first call, and attention reads a window of them: the next multiple of ``window`` slots, masked after the place. One
graph or compilation per window; nothing crosses between host and device inside a picture.

The eager way runs the same static steps without compiling anything: it shows on any machine that they draw what
``Decoding.run`` draws.

Shapes: K prompts, G images a prompt (N = K * G), T prefix slots, L image tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from mentor_base.errors import UserError
from mentor_base.generate import Decoding, Generation
from mentor_base.prefix import Prefix

Way = Literal["eager", "compile", "graph"]
WARM_UPS = 2  # torch wants kernels to have run before they are captured
COMPILATIONS = 256  # one per window and shape of batch; torch would give up after 8


class DecodeEngine:
    """Runs decodings with static steps; keep it over many calls.

    It holds the caches of the last shape (prompts, group size, slots, sampling) and what was compiled or captured for
    it. Weights may change in place between calls, as an optimizer changes them; a moved or replaced model needs a new
    engine. Under autocast each call captures its graphs anew: they read casts of the weights, which autocast drops at
    its end. Engines that gather weights for each call (ZeRO-3, FSDP) cannot be captured.

    Args:
        way: "graph" needs a GPU; "compile" a C++ compiler on a CPU.
        window: slots by which attention grows.
        slots: prefixes are padded to a multiple of so many, lest each batch have its own shape.
        backend: of torch.compile.
    """

    def __init__(self, way: Way, window: int = 64, slots: int = 32, backend: str = "inductor") -> None:
        self.way, self.window, self.slots = way, window, slots
        self._held: Decoding | None = None
        self._shape: tuple[Any, ...] = ()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._advance: Callable[[Decoding], None] = _advance
        if way == "compile":
            compiled = torch.compile(_advance, dynamic=False, fullgraph=True, backend=backend)
            self._advance = torch._dynamo.config.patch(recompile_limit=COMPILATIONS)(compiled)

    def padded(self, prefix: Prefix) -> Prefix:
        """The same prompts with a multiple of ``slots`` prefix slots."""
        slots = prefix.mask_KT.shape[1]
        return prefix.padded(slots + -slots % self.slots)

    def run(self, fresh: Decoding) -> Generation:
        """Draw all tokens of a decoding whose prefix was read.

        Raises:
            UserError: "graph" without a GPU.
        """
        decoding = self._taken_in(fresh)
        cache, length = decoding.cache, decoding.cache.length
        for place in range(length - 1):
            cache.window = min(length, (place // self.window + 1) * self.window)
            self._step(decoding)
        decoding.draw(length - 1)
        return Generation(decoding.tokens_NL.clone(), decoding.logp_NL.clone())

    def _taken_in(self, fresh: Decoding) -> Decoding:
        """The held decoding with the fresh one's contents, or the fresh one, held from now on."""
        sampling, hidden = fresh.sampling.model_copy(update={"seed": 0}), fresh.hidden
        autocast = torch.is_autocast_enabled(hidden.device.type)
        scaled = fresh.scales_N1 is not None
        shape = (sampling, scaled, autocast, hidden.shape, hidden.dtype, fresh.cache.prefix[0][0].shape)
        if autocast:
            self._graphs.clear()
        if self._held is None or shape != self._shape or self._held.model is not fresh.model:
            self._graphs.clear()
            self._held, self._shape = fresh, shape
            fresh.cache.place = torch.zeros(1, dtype=torch.long, device=fresh.hidden.device)
            fresh.cache.reserve()
            fresh.hidden, fresh.uniforms_NL = fresh.hidden.clone(), fresh.uniforms_NL.clone()
            fresh.scales_N1 = None if fresh.scales_N1 is None else fresh.scales_N1.clone()
            return fresh
        held = self._held
        for old, new in zip(_inputs(held), _inputs(fresh), strict=True):
            if old is not new:
                old.copy_(new)
        assert held.cache.place is not None
        held.cache.place.zero_()
        return held

    def _step(self, decoding: Decoding) -> None:
        if self.way != "graph":
            self._advance(decoding)
            return
        window = decoding.cache.window
        if window not in self._graphs:
            self._graphs[window] = _captured(decoding)
        self._graphs[window].replay()


def _advance(decoding: Decoding) -> None:
    """Draw the token at ``cache.place``, read it, and move on; every tensor stays where it is."""
    place = decoding.cache.place
    assert place is not None
    tokens_N1, logp_N1 = decoding.choose(decoding.uniforms_NL.index_select(1, place))
    decoding.tokens_NL.index_copy_(1, place, tokens_N1)
    decoding.logp_NL.index_copy_(1, place, logp_N1)
    decoding.hidden.copy_(decoding.feed(tokens_N1))
    place.add_(1)


def _captured(decoding: Decoding) -> torch.cuda.CUDAGraph:
    """A graph of ``_advance`` with the present window; leaves hidden states and place as they were.

    Raises:
        UserError: without a GPU.
    """
    if decoding.hidden.device.type != "cuda":
        raise UserError(f"decoding as CUDA graphs: expected a model on a GPU, found it on {decoding.hidden.device}")
    place = decoding.cache.place
    assert place is not None
    before = decoding.hidden.clone(), place.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            _advance(decoding)
            decoding.hidden.copy_(before[0])
            place.copy_(before[1])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # rewards may be at work in another thread
        _advance(decoding)
    return graph


def _inputs(decoding: Decoding) -> list[torch.Tensor]:
    """All that a step reads beside the weights and what it has written itself."""
    cache = decoding.cache
    prefixes = [part for pair in cache.prefix for part in pair]
    scales = [] if decoding.scales_N1 is None else [decoding.scales_N1]
    return [decoding.hidden, decoding.uniforms_NL, *scales, cache.prefix_bias, *cache.tables, *prefixes]
