"""VQModel against the reference implementation, and its own promises."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mentor_base import vq
from mentor_base.errors import UserError
from mentor_base.interchange.importing import import_vq16
from mentor_base.vq import VQConfig, VQModel

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
SMALL = {
    "image_size": 32, "channels": 32, "multipliers": (1, 2), "residual_blocks": 1, "latent_channels": 16,
    "codebook_size": 64, "stem_patch": 2,
}  # fmt: skip


def formula_weight(key: str, shape: list[int]) -> torch.Tensor:
    """The parity fixtures' weights: a function of name and shape."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    weight = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return torch.from_numpy(1 + 0.1 * weight if key.endswith("weight") else 0.1 * weight)
    return torch.from_numpy(weight / np.sqrt(np.prod(shape[1:])).astype(np.float32))


def small(**options: object) -> VQModel:
    torch.manual_seed(0)
    return VQModel(VQConfig(**{**SMALL, **options})).eval()


def pictures(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_full_size_equals_the_reference() -> None:
    fixture = json.loads((PARITY / "vq16.json").read_text(encoding="utf-8"))
    expected = np.load(PARITY / "vq16.npz")
    shape = fixture["image_shape"]
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(b"vq.image")))
    image = torch.tanh(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)))
    state = {key: formula_weight(key, size) for key, size in fixture["keys"].items()}
    with torch.device("meta"):
        model = VQModel(VQConfig())
    model.load_state_dict(import_vq16(state), assign=True)
    model.eval()

    tokens = model.encode(image)
    assert tokens.flatten().tolist() == expected["indices"].tolist()
    chosen = model.codebook[tokens].transpose(1, 2).reshape(2, 8, 4, 6)
    np.testing.assert_allclose(chosen.numpy(), expected["quant"], atol=1e-5)
    decoded = model.decode(tokens, grid=(4, 6))
    np.testing.assert_allclose(decoded[:, :, :8, :8].numpy(), expected["decoded_patch"], atol=1e-4)
    np.testing.assert_allclose(decoded.mean((2, 3)).numpy(), expected["decoded_mean"], atol=1e-4)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(71.9e6, rel=2e-3)


@pytest.mark.parametrize("change", ["missing", "extra", "misshaped"])
def test_import_is_strict(change: str) -> None:
    keys = json.loads((PARITY / "vq16.json").read_text(encoding="utf-8"))["keys"]
    state = {key: torch.empty(size, device="meta") for key, size in keys.items()}
    if change == "missing":
        del state["encoder.mid.1.q.weight"]
        message = r"do not fit \(1 missing\): 'encoder.mid.1.q.weight': missing; looks like a VQ-16 tokenizer"
    elif change == "extra":
        state["encoder.mid.3.q.weight"] = torch.empty(1)
        message = "'encoder.mid.3.q.weight': unknown"
    else:
        state["quant_conv.bias"] = torch.empty(4)
        message = r"'quant_conv.bias': expected shape \(8,\), found \(4,\)"
    with pytest.raises(UserError, match=message):
        import_vq16(state)


@pytest.mark.parametrize("normalisation", ["group", "none"])
@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_shapes_of_small_models(normalisation: str, attention: bool) -> None:
    model = small(normalisation=normalisation, attention=attention, decoder_channels=64, decoder_blocks=1)
    assert (model.config.stride, model.config.grid, model.config.tokens) == (4, 8, 64)
    tokens = model.encode(pictures())
    assert tokens.shape == (2, 64)
    assert tokens.dtype == torch.long
    assert model.decode(tokens).shape == (2, 3, 32, 32)
    features = model.trunk_features(pictures())
    assert features.shape == (2, 64, model.trunk_width)
    np.testing.assert_allclose(features[..., : model.encoder.width].norm(dim=-1), 4.0, rtol=1e-5)
    np.testing.assert_allclose(features[..., model.encoder.width :] / 2, model.latents(pictures()), atol=1e-6)
    np.testing.assert_allclose(model.codebook.norm(dim=-1), 1.0, rtol=1e-5)


@torch.no_grad()
def test_tokens_are_row_major() -> None:
    model = small(attention=False, normalisation="none")
    upper, whole = pictures(1), pictures(1)
    whole[:, :, 24:] = 1.0
    same = (model.encode(upper) == model.encode(whole)).reshape(8, 8)
    assert same[:2].all()
    assert not same[6:].all()


@torch.no_grad()
def test_many_pictures_go_through_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = small(), list[int]()
    for part in (model.encoder, model.decoder):
        part.middle.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    whole = model.encode(pictures(5))
    decoded = model.decode(whole)
    monkeypatch.setattr(vq, "PIXELS_AT_A_TIME", 2 * 32 * 32 + 1)
    assert torch.equal(model.encode(pictures(5)), whole)
    torch.testing.assert_close(model.decode(whole), decoded)
    assert seen == [5, 5, 2, 2, 1, 2, 2, 1]


def test_training_pass_reaches_the_encoder() -> None:
    model = small(normalisation="none").train()
    output = model(pictures())
    assert torch.equal(output.reconstruction, model.decode(output.tokens_NL)) or torch.allclose(
        output.reconstruction, model.decode(output.tokens_NL), atol=1e-5
    )
    output.reconstruction.square().mean().backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.codes.weight.grad is None


@torch.no_grad()
def test_save_and_load_give_the_same_codes(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    again = VQModel.from_pretrained(tmp_path).eval()
    assert again.config.multipliers in ([1, 2], (1, 2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert torch.equal(model.encode(pictures()), again.encode(pictures()))


def test_bad_pictures_and_codes_are_named() -> None:
    model = small()
    with pytest.raises(UserError, match=r"multiples of 4, found \(1, 3, 30, 32\)"):
        model.encode(torch.zeros(1, 3, 30, 32))
    with pytest.raises(UserError, match="8 x 8 codes per picture, found 65"):
        model.decode(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(UserError, match="channels: expected a multiple of 32"):
        small(channels=24)
