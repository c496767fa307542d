"""Products with weights that a sampler has ready: the same numbers, and never of weights that have changed."""

from __future__ import annotations

import pytest
import torch
from policies import mixed_prompts, small_policy

from mentor_base import products
from mentor_base.generate import Decoding
from mentor_base.products import PreparedWeight, linear, prepared
from mentor_base.settings import Sampling


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 16])
def test_a_prepared_weight_gives_the_same_product(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 48, generator=generator).to(dtype)
    weight = torch.randn(40, 48, generator=generator).to(dtype)
    ready = prepared(weight, rows)
    assert isinstance(ready, PreparedWeight) == (products.computing_dtype(weight) == torch.float32)
    exact = x.double() @ weight.double().T
    found = linear(x, ready)
    assert found.dtype == dtype
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(found.double(), exact, rtol=rounding, atol=10 * rounding)


def test_what_gains_nothing_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(8, 8)
    assert prepared(weight, products.FEW_ROWS + 1) is weight
    assert prepared(torch.empty(0), 4).numel() == 0  # type: ignore[union-attr]
    with torch.autocast("cpu", torch.bfloat16):
        assert prepared(weight, 4) is weight
    monkeypatch.setattr(products, "LARGE", 65)
    assert prepared(weight, 4) is weight


@torch.no_grad()
def test_a_decoding_reads_the_weights_of_its_own_time() -> None:
    model, processor = small_policy()
    prefix = model(mode="encode", **processor(mixed_prompts()))

    def drawn(prepare: bool) -> Decoding:
        uniforms = torch.rand(len(prefix.mask_KT) * 2, 16, generator=torch.Generator().manual_seed(3))
        decoding = Decoding(model, prefix, 2, Sampling(guidance_scale=2.0), uniforms_NL=uniforms, prepare=prepare)
        decoding.run()
        return decoding

    before = drawn(True)
    kinds = [type(weight) for weight in (*before.cache.weights.values(), before.cache.head)]
    assert kinds == [PreparedWeight] * (4 * model.config.num_hidden_layers + 1)
    torch.testing.assert_close(before.logp_NL, drawn(False).logp_NL, atol=1e-4, rtol=0)
    model.decoder.blocks[0].qkv.weight.mul_(1.5)
    model.decoder.blocks[1].down.weight.mul_(0.5)
    after = drawn(True)
    assert not torch.equal(after.tokens_NL, before.tokens_NL)
    torch.testing.assert_close(after.logp_NL, drawn(False).logp_NL, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_layer_whose_weight_is_not_made_ready_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 gathers a weight around the call of its module alone."""
    monkeypatch.setattr(products, "LARGE", 1 << 20)
    model, processor = small_policy()
    prefix = model(mode="encode", **processor(mixed_prompts()))
    calls: list[torch.nn.Module] = []
    for block in model.decoder.blocks:
        block.qkv.register_forward_hook(lambda layer, *_: calls.append(layer))
    uniforms = torch.rand(len(prefix.mask_KT), 16, generator=torch.Generator().manual_seed(3))
    decoding = Decoding(model, prefix, 1, Sampling(), uniforms_NL=uniforms, prepare=True)
    decoding.run()
    assert len(calls) == 16 * model.config.num_hidden_layers  # the prefix, then all tokens but the last
