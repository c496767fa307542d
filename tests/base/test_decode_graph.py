"""Static steps, compiled or not, draw what the plain loop draws; products on CPUs without bfloat16 units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from policies import mixed_prompts, shared_policy, small_policy
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mentor_base import decode_graph, products
from mentor_base.decode_graph import DecodeEngine
from mentor_base.errors import UserError
from mentor_base.generate import Decoding, Generation, generate
from mentor_base.settings import Sampling


@torch.no_grad()
def drawn(engine: DecodeEngine | None, sampling: Sampling, seed: int, first: int = 0) -> Generation:
    model, processor = shared_policy()
    prefix = model(mode="encode", **processor(mixed_prompts()[first : first + 2]))
    return generate(model, prefix, 2, sampling, torch.Generator().manual_seed(seed), engine=engine)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("window", [4, 7, 64])
def test_static_steps_draw_what_the_loop_draws_call_after_call(window: int, guidance: float) -> None:
    engine, sampling = DecodeEngine("eager", window=window, slots=56), Sampling(guidance_scale=guidance)
    for seed, first in ((0, 0), (1, 1), (2, 0)):  # the second and third call reuse the first one's caches
        static, plain = drawn(engine, sampling, seed, first), drawn(None, sampling, seed, first)
        assert torch.equal(static.tokens_NL, plain.tokens_NL)
        torch.testing.assert_close(static.logp_NL, plain.logp_NL, atol=1e-5, rtol=0)


def test_prefixes_may_be_padded_beyond_the_unconditional_table() -> None:
    sampling = Sampling(guidance_scale=3.0)
    static = drawn(DecodeEngine("eager", slots=100), sampling, 0)
    assert torch.equal(static.tokens_NL, drawn(None, sampling, 0).tokens_NL)


def test_a_result_is_not_overwritten_by_the_next_call() -> None:
    engine = DecodeEngine("eager", slots=56)
    first = drawn(engine, Sampling(), 0)
    kept = first.tokens_NL.clone()
    assert not torch.equal(drawn(engine, Sampling(), 1).tokens_NL, kept)
    assert torch.equal(first.tokens_NL, kept)


def test_the_static_step_is_one_graph_for_each_window() -> None:
    """``fullgraph`` raises where Python would interrupt a compiled step, as a synchronisation with the host does, and
    where torch gives up compiling: after 8 times, here after 1. A picture of 512 pixels has 16 windows.
    """
    engine, sampling = DecodeEngine("compile", window=8, backend="eager"), Sampling(guidance_scale=3.0)
    with torch._dynamo.config.patch(recompile_limit=1):
        assert torch.equal(drawn(engine, sampling, 0).tokens_NL, drawn(None, sampling, 0).tokens_NL)


class Tape(TorchDispatchMode):
    """A CUDA graph on a CPU: what was done once is done again, by the same operations on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        for func, args, kwargs, made in self.done:
            for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def taped(decoding: Decoding) -> Tape:
    """A step on a tape; leaves the decoding as it was."""
    place = decoding.cache.place
    assert place is not None
    before = decoding.hidden.clone(), place.clone()
    with Tape() as tape:
        decode_graph._advance(decoding)
    decoding.hidden.copy_(before[0])
    place.copy_(before[1])
    return tape


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_graphs_read_the_weights_of_their_own_time(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast keeps casts of the weights and drops them at its end; a graph would go on with the old ones."""
    monkeypatch.setattr(decode_graph, "_captured", taped)
    model, processor = small_policy()
    engines = [DecodeEngine(way, window=7, slots=56) for way in ("graph", "eager")]
    seen = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            prefix = model(mode="encode", **processor(mixed_prompts()))
            replayed, plain = (
                generate(model, prefix, 2, Sampling(guidance_scale=3.0), torch.Generator().manual_seed(1), engine=way)
                for way in engines
            )
        assert torch.equal(replayed.tokens_NL, plain.tokens_NL)
        torch.testing.assert_close(replayed.logp_NL, plain.logp_NL)
        seen.append(plain.logp_NL)
        model.decoder.blocks[1].qkv.weight.mul_(1.5)
        model.decoder.head.weight.mul_(1.5)
    assert not torch.equal(*seen)


def test_an_engine_keeps_one_room_for_its_pictures() -> None:
    """Keys and values of the pictures are most of a rollout's memory; a second call may not ask for them again."""
    model, processor = shared_policy()
    engine = DecodeEngine("eager", slots=56)
    for seed in (0, 1):
        drawn(engine, Sampling(), seed)
    assert engine._held is not None
    with torch.no_grad():
        prefix = engine.padded(model(mode="encode", **processor(mixed_prompts()[:2])))
        fresh = Decoding(model, prefix, 2, Sampling(), torch.Generator(), prepare=False)
    held = engine._held.cache.own
    engine.run(fresh)
    assert not fresh.cache.own
    assert engine._held.cache.own is held


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(UserError, match="expected a model on a GPU, found it on cpu"):
        drawn(DecodeEngine("graph"), Sampling(), 0)


@pytest.mark.parametrize("has_units", [True, False])
def test_bfloat16_products_are_rounded_once(has_units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_cpu_has_bfloat16", lambda: has_units)
    x, weight = torch.randn(64, 40).bfloat16(), torch.randn(30, 40).bfloat16()
    found = products.linear(x, weight)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, F.linear(x, weight))
    if not has_units:
        exact = x.double() @ weight.double().T
        half_a_unit = exact.abs() * 2**-8  # of bfloat16's eight bits
        assert ((found.double() - exact).abs() <= half_a_unit + 1e-5).all()
    assert products.computing_dtype(x) == (torch.bfloat16 if has_units else torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.computing_dtype(x) == torch.bfloat16
