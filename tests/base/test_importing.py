"""Checkpoints of LlamaGen, MENTOR and VQ-16: taken whole or refused, and what no source holds is named."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_reference import ARGUMENTS, ROWS, Mini
from policies import SMALL_VQ, fixture, formula_weight, picture, reference_config
from safetensors.torch import load_file, save_file

from mentor_base.checkpoint import load_policy, load_vq
from mentor_base.data.schema import Prompt
from mentor_base.errors import UserError
from mentor_base.generate import draw
from mentor_base.interchange.exporting import reference_state
from mentor_base.interchange.importing import import_checkpoint, import_llamagen, joined
from mentor_base.interchange.names import VQ16
from mentor_base.interchange.options import ImportOptions
from mentor_base.interchange.report import ImportReport
from mentor_base.interchange.weight_files import read_weights, write_safetensors
from mentor_base.vq import VQConfig, VQModel


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mini:
    return Mini(tmp_path, monkeypatch)


def import_mini(mini: Mini, source: Path, **options: Any) -> tuple[ImportReport, Path]:
    out = mini.folder / f"out{len(list(mini.folder.iterdir()))}"
    out.mkdir()
    return import_checkpoint(source, "mentor", out, ImportOptions(vq=mini.vq, tokenizer=mini.tokenizer, **options)), out


def test_a_mentor_checkpoint_becomes_a_policy_that_draws(mini: Mini) -> None:
    caches = {
        "layers.0.attention.kv_cache.k_cache": torch.zeros(2),
        "layers.1.attention.kv_cache.v_cache": torch.zeros(2),
    }
    content = {"model": {**mini.mentor, **caches}, "args": ARGUMENTS, "optimizer": {"state": {}}, "steps": 7}
    report, out = import_mini(mini, mini.save(content))
    model, processor = load_policy(out)
    loaded = model.state_dict()
    assert torch.equal(loaded["decoder.uncond"], mini.mentor["cls_embedding.uncond_embedding"])
    halves = [mini.mentor[f"layers.1.feed_forward.{name}.weight"] for name in ("w1", "w3")]
    assert torch.equal(loaded["decoder.blocks.1.gate_up.weight"], torch.cat(halves))
    assert model.config.placeholder_id == processor.placeholder_id == 4
    assert len(draw(model, processor, [Prompt("fox")]).images) == 1
    stored = load_file(out / "model.safetensors")
    assert {key.split(".")[0] for key, value in stored.items() if value.dtype == torch.bfloat16} == {"encoder"}
    assert report.choices["size"].startswith("mini, from the shapes")
    assert report.choices["image size"] == "16, as the source says"
    assert "fix=gpt-empty-fix" in report.choices["prefix rotation"]
    assert not report.fresh
    written = json.loads((out / "import.json").read_text(encoding="utf-8"))
    assert sum(part["parameters"] for part in written["parts"]) == sum(value.numel() for value in stored.values())
    assert [line.split(": ", 1)[1] for line in written["left_out"]] == [
        "entry 'optimizer' beside the weights", "entry 'steps' beside the weights", *caches
    ]  # fmt: skip
    assert str(mini.folder.parent) not in json.dumps(written)


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_wrappers_and_files(tmp_path: Path, wrapper: str | None, suffix: str) -> None:
    state = {"a": torch.randn(3), "b": torch.randn(2).bfloat16()}
    file = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({wrapper: state, "epoch": 1} if wrapper else state, file)
    read = read_weights(file)
    assert all(torch.equal(read.tensors[key], state[key]) for key in ("a", "b"))
    assert read.wrapper == (None if suffix == ".safetensors" else wrapper)


def test_tensors_are_written_aligned_to_their_dtype(tmp_path: Path) -> None:
    """They are mapped later, and a number that lies across a boundary cannot be."""
    pieces = {"a": (torch.ones(3).bfloat16(),), "b": (torch.ones(2, 3), torch.zeros(1, 3)), "c.": (torch.tensor(7),)}
    write_safetensors(tmp_path / "x.safetensors", pieces)
    written = (tmp_path / "x.safetensors").read_bytes()
    start = 8 + int.from_bytes(written[:8], "little")
    header = json.loads(written[8:start])
    for name, (first, *_) in pieces.items():
        assert (start + header[name]["data_offsets"][0]) % first.itemsize == 0, name
    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], joined(parts)) for name, parts in pieces.items())


def llamagen_options(mini: Mini, **options: Any) -> ImportOptions:
    parts = {"vq": mini.vq, "text_encoder": mini.text_encoder(), "vision": mini.vision(), "image_size": 16}
    return ImportOptions(**{**parts, **options})


def test_llamagen_with_t5_and_clip_starts_mentor_training(mini: Mini, tmp_path: Path) -> None:
    source, options = mini.save({"module": mini.llamagen}), llamagen_options(mini)
    outs = [tmp_path / name for name in "abc"]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        out.mkdir()
        report = import_checkpoint(source, "llamagen", out, replace(options, seed=seed))
    model, processor = load_policy(outs[0])
    assert model.config.prefix_rotation == "zero"
    assert len(draw(model, processor, [Prompt("fox")]).images) == 1
    assert sorted(report.fresh) == [
        "encoder.connector.fc1.bias [24]", "encoder.connector.fc1.weight [24, 32]",
        "encoder.connector.fc2.bias [24]", "encoder.connector.fc2.weight [24, 24]",
    ]  # fmt: skip
    assert any("t5/model.safetensors: decoder." in line for line in report.left_out)  # the source is a whole T5
    first, same, other = ((out / "model.safetensors").read_bytes() for out in outs)
    assert first == same != other
    connector = load_file(outs[0] / "model.safetensors")["encoder.connector.fc2.weight"]
    assert connector.std().item() == pytest.approx(0.02, rel=0.2)


def test_llamagen_may_start_with_a_query_connector(mini: Mini, tmp_path: Path) -> None:
    query = {"connector": "query", "queries": 3, "qformer_config.num_hidden_layers": 1}
    query |= {"qformer_config.hidden_size": 12, "qformer_config.intermediate_size": 12}
    source, options = mini.save({"model": mini.llamagen}), llamagen_options(mini, options=query)
    files = []
    for name in "ab":
        (tmp_path / name).mkdir()
        report = import_checkpoint(source, "llamagen", tmp_path / name, options)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1], "the seed decides what is new"
    model, processor = load_policy(tmp_path / "a")
    connector = model.encoder.connector.state_dict()
    assert {line.partition(" [")[0] for line in report.fresh} == {f"encoder.connector.{name}" for name in connector}
    for name, value in connector.items():
        if "norm" in name.lower():
            assert torch.equal(value, torch.full_like(value, float(name.endswith("weight")))), name
    assert connector["queries"].std().item() == pytest.approx(0.02, rel=0.3)
    assert processor.picture_slots == 3
    prompt = Prompt("<image> fox <image>", (picture(1), picture(2)), subject="fox")
    assert (processor([prompt])["input_ids"] == processor.placeholder_id).sum() == 6
    assert len(draw(model, processor, [prompt]).images) == 1
    for wrong, line in (
        ({"connector": "queri"}, "connector: expected one of mlp, query, found 'queri'"),
        ({**query, "qformer_config.vocab_size": 9}, "--option qformer_config.vocab_size: expected no value"),
    ):
        with pytest.raises(UserError, match=line):
            import_checkpoint(source, "llamagen", tmp_path / "x", llamagen_options(mini, options=wrong))


def test_the_unconditional_table_grows_where_it_is_told(mini: Mini) -> None:
    source = mini.save({"model": mini.mentor, "args": ARGUMENTS})
    found = mini.mentor["cls_embedding.uncond_embedding"]
    with pytest.raises(UserError, match=f"--keep-rows: expected 'front' or 'tail', since the source has {ROWS}"):
        import_mini(mini, source, prefix_rows=20)
    for end, rows in (("front", slice(0, ROWS)), ("tail", slice(20 - ROWS, 20))):
        report, out = import_mini(mini, source, prefix_rows=20, keep_rows=end)
        model, _ = load_policy(out)
        assert model.decoder.uncond.shape == (20, 24)
        assert torch.equal(model.decoder.uncond[rows], found)
        assert list(report.fresh) == [f"decoder.uncond, rows {'12 to 19' if end == 'front' else '0 to 7'}"]
        _, out = import_mini(mini, source, prefix_rows=5, keep_rows=end)
        kept = found[:5] if end == "front" else found[-5:]
        assert torch.equal(load_policy(out)[0].decoder.uncond, kept)


def test_our_own_folders_in_shards(mini: Mini, tmp_path: Path) -> None:
    _, out = import_mini(mini, mini.save({"model": mini.mentor, "args": ARGUMENTS}))
    state = load_file(out / "model.safetensors")
    names = sorted(state)
    places = {key: f"model-{1 + i % 2}.safetensors" for i, key in enumerate(names)}
    for shard in set(places.values()):
        save_file({key: state[key] for key in names if places[key] == shard}, out / shard)
    (out / "model.safetensors").unlink()
    index = out / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    (tmp_path / "half").mkdir()
    report = import_checkpoint(out, "hf", tmp_path / "half", ImportOptions(dtype="float16"))
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in half.values()} == {torch.float16}
    assert all(torch.equal(value, state[key].half()) for key, value in half.items())
    assert not report.left_out
    load_policy(tmp_path / "half")
    index.write_text(json.dumps({"weight_map": {**places, "x": "../x.safetensors"}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"expected names of files beside it, found '../x.safetensors'"):
        read_weights(out)


def test_a_vq16_file_becomes_a_tokenizer(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mentor_base.interchange.facts.VQConfig", lambda: VQConfig(**SMALL_VQ))  # VQ-16 has 288 MB
    before = load_vq(mini.vq).state_dict()
    state = {**reference_state(before, VQ16), "quantize.codebook_used": torch.zeros(65536)}
    (tmp_path / "out").mkdir()
    report = import_checkpoint(
        mini.save({"model": state}, "vq.pt"), "vq", tmp_path / "out", ImportOptions(image_size=32)
    )
    after = load_vq(tmp_path / "out")
    assert all(torch.equal(value, before[key]) for key, value in after.state_dict().items())
    assert after.config.grid == 8
    assert report.left_out[0].endswith("vq.pt: quantize.codebook_used")


# ---- what is refused ---------------------------------------------------------------------------------------------


class Hostile:
    """Pickles as a call of os.system."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_pickled_code_is_refused_and_does_not_run(mini: Mini) -> None:
    mark = mini.folder / "ran"
    source = mini.save({"model": mini.mentor, "args": Hostile(mark)})
    with pytest.raises(UserError, match=r"found '\w+\.system', which could run code; refused"):
        import_mini(mini, source)
    assert not mark.exists()


def test_tensors_that_do_not_fit_are_named(mini: Mini) -> None:
    embedding = "multimodal_encoder.language_model.encoder.embed_tokens.weight"
    changes: list[tuple[dict[str, Any], str]] = [
        (
            {"norm.weight": None},
            r"fit \(1 missing\): 'norm.weight': missing; looks like MENTOR mini: width 32, 2",
        ),
        ({"freqs_cis": torch.zeros(2)}, r"do not fit \(1 unknown\): 'freqs_cis': unknown; looks like"),
        (
            {"norm.weight": None, "layers.0.ffn_norm.weight": None, "nrm.weight": torch.zeros(32)},
            r"fit \(1 unknown, 2 missing\): 'nrm.weight': unknown; did you mean 'norm.weight'\?; 'layers.0.ffn_norm",
        ),
        (
            {"norm.weight": None, "~": torch.zeros(2)},
            r"fit \(1 unknown, 1 missing\): '~': unknown; 'norm.weight': miss",
        ),
        ({"layers.0.feed_forward.w3.weight": None}, r"'layers.0.feed_forward.w3.weight': missing"),
        ({"output.weight": torch.zeros(3, 32)}, r"'output.weight': expected shape \(32, 32\), found \(3, 32\)"),
        (
            {embedding: torch.zeros(16, 24).bfloat16()},
            f"'{embedding}': expected a copy of '.*shared.weight'",
        ),
    ]
    for change, line in changes:
        state = {key: value for key, value in {**mini.mentor, **change}.items() if value is not None}
        with pytest.raises(UserError, match=line):
            import_mini(mini, mini.save({"model": state, "args": ARGUMENTS}))
    for copy in ("shared.weight", "encoder.embed_tokens.weight"):  # one of the tied pair is enough
        state = {key: value for key, value in mini.mentor.items() if not key.endswith(copy)}
        _, out = import_mini(mini, mini.save({"model": state, "args": ARGUMENTS}))
        load_policy(out)


def test_another_architecture_says_what_it_looks_like(mini: Mini) -> None:
    facts, _ = fixture("decoder_tiny")
    state = {key: formula_weight(key, shape) for key, shape in facts["keys"].items()}
    with pytest.raises(UserError) as caught:
        import_llamagen(state, reference_config(hidden_size=64, num_hidden_layers=3, intermediate_size=256))
    line = str(caught.value)
    assert line.count("expected shape") == 3
    assert line.endswith("; ...; looks like LlamaGen of no known size: width 128, 2 layers")
    with pytest.raises(UserError, match=r"a size of the table, found width 128 and 2 layers; known: .*XL \(1280"):
        import_mini(mini, mini.save({"model": state, "args": ARGUMENTS}))
    with pytest.raises(UserError, match=r"do not fit .*looks like LlamaGen mini: width 32, 2 layers"):
        import_mini(mini, mini.save({"model": mini.llamagen, "args": ARGUMENTS}))
    three = "'tok_embeddings.weight', 'layers.0.attention.wqkv.weight', 'norm.weight'"
    with pytest.raises(UserError, match=f"found no {three}; looks like a VQ-16 tokenizer with 7 codes"):
        import_mini(mini, mini.save({"quantize.embedding.weight": torch.zeros(7, 8)}), image_size=16)
    source = mini.save({"model": mini.llamagen})
    with pytest.raises(UserError, match="looks like LlamaGen mini"):
        import_checkpoint(source, "llamagen", mini.folder, llamagen_options(mini, size="B", image_size=16))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"weights": {"a": torch.zeros(1)}}, "bare or under model, module, state_dict; found 'weights'"),
        ({"model": {}}, "bare or under model, module, state_dict; found nothing"),
        ([torch.zeros(1)], "expected a state dict, found list"),
        (b"no archive at all", "found a damaged file or one of another kind"),
    ],
)
def test_files_that_hold_no_state_dict(tmp_path: Path, content: Any, line: str) -> None:
    file = tmp_path / "x.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UserError, match=line):
        read_weights(file)


def test_a_file_cut_short(mini: Mini) -> None:
    source = mini.save({"model": mini.mentor})
    os.truncate(source, source.stat().st_size // 2)
    with pytest.raises(UserError, match="found a damaged file"):
        read_weights(source)


def test_folders_of_another_kind_and_sides_that_do_not_fit(mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vq: expected a model of type 'mentor', found 'mentor_vq'"):
        import_checkpoint(mini.vq, "hf", tmp_path / "x", ImportOptions())
    _, out = import_mini(mini, mini.save({"model": mini.mentor, "args": ARGUMENTS}))
    VQModel(VQConfig(**{**SMALL_VQ, "codebook_size": 64})).save_pretrained(tmp_path / "other")
    with pytest.raises(
        UserError, match="--vq: expected a tokenizer of 32 codes, as the policy has it, found one of 64"
    ):
        import_checkpoint(out, "hf", tmp_path / "x", ImportOptions(vq=tmp_path / "other"))
    with pytest.raises(UserError, match="--image-size: expected a multiple of 4, found 18"):
        import_checkpoint(out, "hf", tmp_path / "x", ImportOptions(image_size=18))


def test_choices_that_have_to_be_made(mini: Mini) -> None:
    source = mini.save({"model": mini.mentor})
    for options, line in (
        ({"vq": mini.vq}, "--tokenizer: expected a path, since a MENTOR checkpoint does not hold it"),
        ({"vq": mini.vq, "tokenizer": mini.tokenizer}, "--image-size: expected the side of the drawn picture"),
        ({"vision": mini.vq}, "--vision: does not apply to --from mentor"),
        ({"vq": mini.vq, "tokenizer": mini.tokenizer, "dtype": "float61"}, "did you mean 'float16'"),
        ({"vq": mini.vq, "tokenizer": mini.vq}, "expected a text tokenizer"),
        ({"vq": mini.vq, "tokenizer": mini.tokenizer, "options": {"context_length": 9}, "image_size": 16}, "decide it"),
        ({"vq": mini.vq, "tokenizer": mini.tokenizer, "options": {"eos_token_id": 9}, "image_size": 16}, "decide it"),
        ({"vq": mini.vq, "tokenizer": mini.tokenizer, "options": {"connector": "query"}, "image_size": 16}, "'mlp'"),
    ):
        with pytest.raises(UserError, match=line):
            import_checkpoint(source, "mentor", mini.folder / "x", ImportOptions(**options))  # type: ignore[arg-type]
