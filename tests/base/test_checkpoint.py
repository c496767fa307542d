"""Policies on disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from policies import CLIP, QUERY, mixed_prompts, shared_policy, small_policy
from safetensors.torch import load_file, save_file

from mentor_base.checkpoint import load_policy, load_vq, save_policy
from mentor_base.config import SIZES
from mentor_base.errors import UserError
from mentor_base.generate import draw
from mentor_base.model import MentorForConditionalGeneration


@pytest.mark.parametrize("options", [{}, CLIP, QUERY, {"uncond": "fixed", "factorised_codebook": False}])
def test_a_reloaded_policy_draws_the_same_tokens(tmp_path: Path, options: dict[str, object]) -> None:
    model, processor = small_policy(**options)
    save_policy(model, processor, tmp_path / "run" / "final")
    loaded, other = load_policy(tmp_path / "run")  # a run folder: its final/
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.vq.parameters())
    before, after = (draw(m, p, mixed_prompts(), 2, seed=3) for m, p in ((model, processor), (loaded, other)))
    assert torch.equal(before.tokens_NL, after.tokens_NL)
    assert torch.equal(before.logp_NL, after.logp_NL)


def test_float16_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    model, processor = shared_policy()
    sizes = {}
    for dtype in ("float32", "float16"):
        save_policy(model, processor, tmp_path / dtype, dtype=dtype)
        sizes[dtype] = (tmp_path / dtype / "model.safetensors").stat().st_size
    assert sizes["float16"] < 0.6 * sizes["float32"]
    stored = load_file(tmp_path / "float16" / "model.safetensors")
    assert {"encoder.text.shared.weight", "encoder.text.encoder.embed_tokens.weight"} - stored.keys()  # tied: once
    loaded, _ = load_policy(tmp_path / "float16")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert next(model.parameters()).dtype == torch.float32  # the saved model was left alone
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="dtype: unknown 'float61'; did you mean 'float16'"):
        save_policy(model, processor, tmp_path / "x", dtype="float61")


def edited(tmp_path: Path, change: str) -> Path:
    model, processor = shared_policy()
    save_policy(model, processor, tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    name = "decoder.blocks.1.out.weight"
    if change == "missing":
        del state[name]
    elif change == "extra":
        state["decoder.blocks.1.out.bias"] = torch.zeros(3)
    else:
        state[name] = state[name][:-1].contiguous()
    save_file(state, file, metadata={"format": "pt"})
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "missing",
            r"fit \(1 missing\): 'decoder\.blocks\.1\.out\.weight': missing; looks like mentor of no",
        ),
        ("extra", r"fit \(1 unknown\): 'decoder\.blocks\.1\.out\.bias': unknown; looks like mentor"),
        ("shape", r"'decoder\.blocks\.1\.out\.weight': expected shape \(32, 32\), found \(31, 32\)"),
    ],
)
@pytest.mark.parametrize("load", [load_policy, MentorForConditionalGeneration.from_pretrained])
def test_loading_is_strict(tmp_path: Path, load: object, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(edited(tmp_path, change))  # type: ignore[operator]


def test_weights_of_another_size_say_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of a policy whose config belongs to another size: three mismatches and the size of the weights."""
    monkeypatch.setitem(SIZES, "mini", {"hidden_size": 32, "num_hidden_layers": 2})
    save_policy(*shared_policy(), tmp_path)
    file = tmp_path / "config.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    deeper = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
    file.write_text(json.dumps({**facts, **deeper}), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_policy(tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{tmp_path}: tensors do not fit (")
    assert line.count("expected shape") == 3
    assert "'decoder.blocks.0.ffn_norm.weight': expected shape (64,), found (32,)" in line
    assert line.endswith("; ...; looks like mentor mini: width 32, 2 layers")


def test_models_of_another_kind_are_told_apart(tmp_path: Path) -> None:
    model, processor = shared_policy()
    save_policy(model, processor, tmp_path / "policy")
    model.vq.save_pretrained(tmp_path / "vq")
    with pytest.raises(UserError, match="vq: expected a model of type 'mentor', found 'mentor_vq'"):
        load_policy(tmp_path / "vq")
    with pytest.raises(UserError, match="policy: expected a model of type 'mentor_vq', found 'mentor'"):
        load_vq(tmp_path / "policy")
    with pytest.raises(UserError, match=r"model\.safetensors: expected a model folder, found a file; `mentor import`"):
        load_policy(tmp_path / "policy" / "model.safetensors")
    (tmp_path / "policy" / "model.safetensors").write_bytes((tmp_path / "vq" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"looks like a mentor tokenizer with 32 codes of 8$"):
        load_policy(tmp_path / "policy")


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    save_policy(*shared_policy(), tmp_path / "p")
    weights = tmp_path / "p" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(UserError, match="p: expected whole safetensors files, found a damaged one"):
        load_policy(tmp_path / "p")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a model folder or a finished run"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("model.safetensors", None, "no file named model.safetensors"),
        ("config.json", "{", r"config\.json: expected JSON, found something else"),
        ("config.json", "[]", r"config\.json: expected a JSON object, found list"),
        ("processor.json", "", r"processor\.json: expected JSON, found something else"),
        ("tokenizer.json", None, r"expected a text tokenizer \(tokenizer\.json\), found none"),
        ("guide_tokenizer/tokenizer.json", None, "expected the tokenizer of the query connector's texts"),
    ],
)
def test_a_folder_that_lacks_a_file_or_holds_a_broken_one(
    tmp_path: Path, file: str, text: str | None, line: str
) -> None:
    save_policy(*small_policy(**QUERY), tmp_path / "p")
    if text is not None:
        (tmp_path / "p" / file).write_text(text, encoding="utf-8")
    elif "/" in file:
        shutil.rmtree((tmp_path / "p" / file).parent)
    else:
        (tmp_path / "p" / file).unlink()
    with pytest.raises(UserError, match=line) as caught:
        load_policy(tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_a_value_of_another_type_in_a_config_is_named(tmp_path: Path) -> None:
    save_policy(*shared_policy(), tmp_path)
    file = tmp_path / "config.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    facts["t5_config"]["num_layers"] = "two"
    file.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(UserError, match="'num_layers' expected int, got str") as caught:
        load_policy(tmp_path)
    assert "\n" not in str(caught.value)


def test_tokenizers_load_frozen(tmp_path: Path) -> None:
    vq = shared_policy()[0].vq
    vq.save_pretrained(tmp_path)
    loaded = load_vq(tmp_path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all(torch.equal(value, vq.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_a_saved_policy_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    model, processor = small_policy()
    model.config.vq_config._name_or_path = str(tmp_path / "tokenizer")  # as after loading one
    save_policy(model, processor, tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text(encoding="utf-8")


def test_a_config_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    model, processor = shared_policy()
    save_policy(model, processor, tmp_path)
    file = tmp_path / "config.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**facts, "image_position": "input"}), encoding="utf-8")
    with pytest.raises(UserError, match="unknown field 'image_position'; did you mean 'image_positions'"):
        load_policy(tmp_path)
