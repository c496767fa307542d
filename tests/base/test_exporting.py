"""Exports in the references' layouts: their names, our values, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mini_reference import ARGUMENTS, Mini
from policies import fixture, reference_config, small_policy

from mentor_base.checkpoint import load_policy, save_policy
from mentor_base.config import MentorConfig
from mentor_base.errors import UserError
from mentor_base.interchange.exporting import check_expressible, export_reference, reference_state
from mentor_base.interchange.importing import import_checkpoint
from mentor_base.interchange.names import LLAMAGEN, MENTOR, VQ16, Layout
from mentor_base.interchange.options import ImportOptions
from mentor_base.interchange.weight_files import read_weights
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.vq import VQConfig, VQModel


def mentor_tiny() -> MentorConfig:
    facts, _ = fixture("mentor_tiny")
    t5 = {key: value for key, value in facts["t5"].items() if key != "model_type"}
    return reference_config(context_length=24, t5_config=t5, clip_config=facts["clip"])


@pytest.mark.parametrize(("name", "layout"), [("decoder_tiny", LLAMAGEN), ("mentor_tiny", MENTOR), ("vq16", VQ16)])
def test_names_and_shapes_are_the_references_own(name: str, layout: Layout) -> None:
    with torch.device("meta"):
        model: Any = VQModel(VQConfig()) if name == "vq16" else None
        model = model or MentorForConditionalGeneration(mentor_tiny() if name == "mentor_tiny" else reference_config())
    named = reference_state(model.state_dict(), layout)
    expected = {key: shape for key, shape in fixture(name)[0]["keys"].items() if not layout.leaves_out(key)}
    assert {key: list(value.shape) for key, value in named.items()} == expected


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_was_imported_comes_out_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    mini = Mini(tmp_path, monkeypatch)
    out = tmp_path / "policy"
    out.mkdir()
    source = mini.save({"model": mini.mentor, "args": ARGUMENTS})
    import_checkpoint(source, "mentor", out, ImportOptions(vq=mini.vq, tokenizer=mini.tokenizer))
    for layout, state in (("mentor", mini.mentor), ("llamagen", mini.llamagen)):
        file = tmp_path / f"{layout}{suffix}"
        export_reference(out, file, layout)  # type: ignore[arg-type]
        read = read_weights(file)
        assert read.wrapper == ("model" if suffix == ".pt" else None)
        assert read.tensors.keys() == state.keys()
        for key, value in state.items():
            assert read.tensors[key].dtype == value.dtype
            assert torch.equal(read.tensors[key], value), key
        assert file.stat().st_size < 1.2 * sum(v.numel() * v.itemsize for v in state.values()) + 100_000


def test_a_factorised_codebook_is_folded(tmp_path: Path) -> None:
    options = {"image_positions": "input", "reference_positions": "prefix", "rope_theta": 1e4}
    save_policy(*small_policy(**options), tmp_path / "policy")
    export_reference(tmp_path / "policy", tmp_path / "x.safetensors", "llamagen")
    model, _ = load_policy(tmp_path / "policy")
    written = read_weights(tmp_path / "x.safetensors").tensors
    assert torch.equal(written["output.weight"], model.head_weight())
    assert not torch.equal(written["output.weight"], model.decoder.head.weight)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_positions", "target"),
        ("reference_positions", "grid"),
        ("rope_theta", 100.0),
        ("connector_activation", "silu"),
        ("connector_width", 40),
    ],
)
def test_what_the_reference_cannot_express_is_named(tmp_path: Path, field: str, value: Any) -> None:
    config = reference_config(**{field: value})
    with pytest.raises(UserError, match=f"{field}: expected .*, the only .* MENTOR's code knows; found {value!r}"):
        check_expressible(config, "mentor", tmp_path)
    if field.startswith("connector"):
        check_expressible(config, "llamagen", tmp_path)  # a decoder has none


def test_small_worlds_are_refused(tmp_path: Path) -> None:
    save_policy(*small_policy(), tmp_path / "policy")
    with pytest.raises(UserError, match="reference_positions: expected 'prefix'"):
        export_reference(tmp_path / "policy", tmp_path / "x.pt", "mentor")
    with pytest.raises(UserError, match=r"expected a file name with \.pt"):
        export_reference(tmp_path / "policy", tmp_path / "x.zip", "mentor")
