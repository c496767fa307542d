"""Cached codes: the tokenizer's own, training on them is training on pictures, and no other policy takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from row_files import row, save_pictures, write_jsonl
from tiny_stage import STEPS, save_tiny_policy, train_tiny

from mentor_base.checkpoint import load_policy, load_tokenizer_of
from mentor_base.data.broken import BrokenRows, read_report
from mentor_base.data.encode import encode_split, start_folder
from mentor_base.data.schema import Codes, Example
from mentor_base.data.shards import ShardFile
from mentor_base.data.sources import data_of_path, scan_file
from mentor_base.errors import UserError
from mentor_base.images import to_pixels
from mentor_base.settings import JsonlData, Mixture, RowData, ShardData, Stage, TrainedParts
from mentor_base.stage_data import Collator, Row
from mentor_base.vq import VQModel


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    save_pictures(tmp_path)
    return write_jsonl(tmp_path, *[row(target=f"{k}.png", meta={"k": k}) for k in range(5)], row(target="noise.png"))


def encode(source: Path, out: Path, vq: VQModel, size: int = 4) -> list[Path]:
    data = data_of_path(str(source))
    manifest = start_folder(out, vq, size, {"train": [source]})
    encode_split(scan_file(data, source), out, "train", manifest, vq, 3, BrokenRows(1.0, out / "broken.ndjson"))
    return sorted(out.glob("*.tar"))


def test_rows_carry_the_tokenizers_codes(policy: Path, rows: Path, tmp_path: Path) -> None:
    vq = load_tokenizer_of(policy)
    shards = [ShardFile(path) for path in encode(rows, tmp_path / "out", vq)]
    assert [len(shard) for shard in shards] == [4, 2]
    for shard in shards:
        for n in range(len(shard)):
            example = shard[n].load()
            assert example.codes is not None
            assert example.codes.tokenizer == vq.fingerprint()
            assert list(example.codes.tokens) == vq.encode(to_pixels([example.target], 64))[0].tolist()
    held = json.loads((tmp_path / "out/codes.json").read_text())
    assert (held["tokenizer"], held["rows"], held["tokens"]) == (vq.fingerprint(), {"train": 6}, vq.config.tokens)


def test_training_on_codes_is_training_on_pictures(policy: Path, rows: Path, tmp_path: Path) -> None:
    encode(rows, tmp_path / "out", load_tokenizer_of(policy))
    kinds: tuple[RowData, ...] = (
        JsonlData(train=str(rows), val=str(rows)),
        ShardData(train=str(tmp_path / "out/*.tar"), val=str(tmp_path / "out/*.tar")),
    )
    runs = []
    for data in kinds:
        stage = Stage(
            name="instruction",
            mixture=Mixture(data=data, weights={"subject": 1.0}),
            train=TrainedParts(text_encoder=True),
        )
        runs.append(train_tiny(policy, tmp_path / data.source, stage=stage))
    logs = [[{k: v for k, v in x.items() if "seconds" not in k} for x in run.metrics()] for run in runs]
    assert logs[0] == logs[1]
    assert logs[0][-1]["step"] == STEPS
    files = [run.final / "model.safetensors" for run in runs]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_codes_of_the_loss_are_float32_under_autocast(policy: Path) -> None:
    model, processor = load_policy(policy)
    example = Example("t2i", "a fox", (), noise())
    pictures = Collator(processor, model.vq)([Row(example, False)])
    codes = Codes(model.vq.fingerprint(), tuple(model.vq.encode(pictures["target_pixels"])[0].tolist()))
    coded = Collator(processor, model.vq)([Row(Example("t2i", "a fox", (), example.target, codes=codes), False)])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(mode="loss", **pictures).loss, model(mode="loss", **coded).loss)


def test_answers_to_words_are_cropped_and_others_squashed(policy: Path, tmp_path: Path) -> None:
    """96 x 64 pixels, red, green (64 wide) and blue: the middle square is green, the squashed picture is not."""
    wide = Image.new("RGB", (96, 64), (0, 200, 0))
    wide.paste((200, 0, 0), (0, 0, 16, 64))
    wide.paste((0, 0, 200), (80, 0, 96, 64))
    wide.save(tmp_path / "wide.png")
    green = to_pixels([Image.new("RGB", (64, 64), (0, 200, 0))])
    model, processor = load_policy(policy)
    examples = [Example("t2i", "a fox", (), wide), Example("reconstruction", "<image>", (wide,), wide)]
    pixels = Collator(processor, model.vq)([Row(example, False) for example in examples])["target_pixels"]
    assert torch.equal(pixels[:1], green)
    assert torch.equal(pixels[1:], to_pixels([wide], 64))
    rows = [{"task": "t2i", "text": "a fox", "target": "wide.png"}, row(images=["wide.png"], target="wide.png")]
    (shard,) = encode(write_jsonl(tmp_path, *rows), tmp_path / "out", model.vq)
    codes = [list(ShardFile(shard)[n].load().codes.tokens) for n in range(2)]  # type: ignore[union-attr]
    assert codes == model.vq.encode(pixels).tolist()


def noise() -> Image.Image:
    return Image.effect_noise((64, 64), 90).convert("RGB")


def test_codes_that_do_not_fit_are_refused(policy: Path) -> None:
    model, processor = load_policy(policy)
    collate = Collator(processor, model.vq)
    mine = model.vq.fingerprint()

    def batch(*codes: Codes | None) -> list[Row]:
        meta = [{"where": f"a.tar:{k}"} for k in range(len(codes))]
        picture = noise()
        return [Row(Example("t2i", "a", (), picture, None, None, meta[k], c), False) for k, c in enumerate(codes)]

    good = Codes(mine, (0,) * model.vq.config.tokens)
    assert collate(batch(good, good))["tokens"].shape == (2, model.vq.config.tokens)
    for codes, line in (
        (
            (Codes("beef", good.tokens),),
            f"a.tar:0: codes: expected those of the policy's tokenizer {mine}, found those of beef",
        ),
        ((good, None), "a.tar:1: codes: expected them as in a.tar:0, found none; encode all rows"),
        ((Codes(mine, (1, 64)),), "a.tar:0: codes.tokens: expected 16 numbers below 64, found 2 up to 64"),
    ):
        with pytest.raises(UserError) as caught:
            collate(batch(*codes))
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("codes", "line"),
    [
        ([1, 2], "codes: expected {tokenizer: ..., tokens: [...]}, found [1, 2]"),
        ({"tokenizer": "x", "tokens": [1, -1]}, "codes.tokens: expected whole numbers from 0 on, found [1, -1]"),
        ({"tokenizer": "x", "tokens": [True]}, "codes.tokens: expected whole numbers from 0 on, found [true]"),
    ],
)
def test_codes_that_are_none(tmp_path: Path, codes: Any, line: str) -> None:
    path = write_jsonl(tmp_path, row(codes=codes))
    found = list(scan_file(data_of_path(str(path)), path))
    assert [str(error) for error in found] == [f"{path}:1: {line}"]


def test_a_stopped_encoding_goes_on_and_ends_the_same(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With broken rows on both sides of the break: a target that cannot be decoded, and a reference that is absent."""
    save_pictures(tmp_path)
    bad = [row(target="cut.png"), row(images=["no.png"], target="3.png")]
    rows = write_jsonl(tmp_path, bad[0], *[row(target=f"{k}.png") for k in range(5)], *bad, row(target="noise.png"))
    vq = load_tokenizer_of(policy)
    whole = encode(rows, tmp_path / "whole", vq, size=2)
    encode_pictures, calls = VQModel.encode, []

    def stops(self: VQModel, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode_pictures(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(VQModel, "encode", stops)
        with pytest.raises(KeyboardInterrupt):
            encode(rows, tmp_path / "out", vq, size=2)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1
    parts = encode(rows, tmp_path / "out", vq, size=2)
    assert [path.read_bytes() for path in parts] == [path.read_bytes() for path in whole]
    assert len(parts) == 3
    assert [line["row"] for line in read_report(tmp_path / "out/broken.ndjson")] == [f"{rows}:{n}" for n in (1, 7, 8)]
    with pytest.raises(UserError, match="holds other codes: rows_per_shard: 2 there, 3 now; name another OUT"):
        encode(rows, tmp_path / "out", vq, size=3)


def test_rows_before_a_stop_count_for_the_rate_of_broken_ones(policy: Path, tmp_path: Path) -> None:
    """Ten broken rows of forty, thirty of which were encoded before: a quarter, not all of what is left."""
    save_pictures(tmp_path)
    bad = [row(target="cut.png")] * 10
    rows = write_jsonl(tmp_path, *bad, *[row(target=f"{k % 5}.png") for k in range(30)])
    vq, out = load_tokenizer_of(policy), tmp_path / "out"
    encode(rows, out, vq, size=30)
    manifest = start_folder(out, vq, 30, {"train": [rows]})
    again = BrokenRows(0.25, out / "broken.ndjson")
    assert encode_split(scan_file(data_of_path(str(rows)), rows), out, "train", manifest, vq, 3, again) == 30
    assert (again.met, again.drawn) == (10, 40)


def test_a_fingerprint_is_that_of_the_encoder(policy: Path) -> None:
    vq = load_tokenizer_of(policy)
    before = vq.fingerprint()
    with torch.no_grad():
        vq.decoder.conv_in.weight.add_(1.0)
        assert vq.fingerprint() == before
        vq.codes.weight[0, 0] += 1e-6
    assert vq.fingerprint() != before
