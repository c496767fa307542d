"""``mentor data encode`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mentor_base.data.shards import ShardFile
from mentor_base.vq import VQConfig, VQModel
from mentor_rl.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["data", "encode", *arguments])
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def test_encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for k in range(3):
        Image.new("RGB", (8, 8), (80 * k, 0, 0)).save(f"{k}.png")
    rows = [{"task": "t2i", "text": "a fox", "target": f"{k}.png"} for k in (0, 1, 9, 2)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    vq = VQModel(
        VQConfig(image_size=16, channels=32, multipliers=(1,), residual_blocks=1, codebook_size=32, stem_patch=8)
    )
    vq.save_pretrained("vq")
    code, out, _ = run(capsys, "rows.jsonl", "out", "--tokenizer", "vq")
    assert code == 0
    assert out.splitlines() == [
        f"out/train-*.tar: 3 rows with codes of tokenizer {vq.fingerprint()}",
        "1 rows with broken pictures were left out; out/broken.ndjson names them",
    ]
    shard = ShardFile(Path("out/train-000000.tar"))
    assert [len(shard[n].load().codes.tokens) for n in range(len(shard))] == [4, 4, 4]  # type: ignore[union-attr]
    assert run(capsys, "rows.jsonl", "out", "--tokenizer", "vq")[:2] == (
        0,
        "out/train-*.tar: finished before, 3 rows\n",
    )
    code, _, err = run(capsys, "rows.jsonl", "out", "--tokenizer", "no")
    assert (code, err.strip()) == (
        2, "no: expected a model folder or a finished run, found neither config.json nor final/config.json"
    )  # fmt: skip
    Path("full").mkdir()
    Path("full/x").touch()
    code, _, err = run(capsys, "rows.jsonl", "full", "--tokenizer", "vq")
    assert (code, err.strip()) == (
        2,
        "full: expected a new or an empty folder, or one to go on with, found other files",
    )
