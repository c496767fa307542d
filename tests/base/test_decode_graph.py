"""Static steps, compiled or not, draw what the plain loop draws; products on CPUs without bfloat16 units."""

from __future__ import annotations

import pytest
import torch
from policies import mixed_prompts, shared_policy
from torch.nn import functional as F

from mentor_base import products
from mentor_base.decode_graph import DecodeEngine
from mentor_base.errors import UserError
from mentor_base.generate import Generation, generate
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


def test_the_static_step_is_one_graph() -> None:
    """``fullgraph`` raises where Python would interrupt a compiled step, as a synchronisation with the host does."""
    engine, sampling = DecodeEngine("compile", window=16, backend="eager"), Sampling(guidance_scale=3.0)
    assert torch.equal(drawn(engine, sampling, 0).tokens_NL, drawn(None, sampling, 0).tokens_NL)


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
