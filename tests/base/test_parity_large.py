"""LlamaGen-XL (778M parameters) from its own file: imported and loaded in little memory, and the reference's numbers.

The weights are a function of their names, so that the fixture holds results alone. About 70 s of CPU
and 3.6 GB of memory; 6.3 GB of disk, given back at the end.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_process import LIMIT, grown
from mini_reference import CLIP, text_tokenizer
from policies import fixture, formula_data, formula_tokens, formula_weight
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5EncoderModel

from mentor_base.checkpoint import load_policy
from mentor_base.prefix import Prefix
from mentor_base.vq import VQConfig, VQModel

IMPORT = """
rotation = {"prefix_rotation": "identity"}  # the fixture's; LlamaGen's own is zero
parts = {"vq": folder / "vq", "text_encoder": folder / "t5", "vision": folder / "clip"}
options = ImportOptions(**parts, image_size=256, options=rotation)
(folder / "policy").mkdir()
import_checkpoint(folder / "xl.pt", "llamagen", folder / "policy", options)
"""
LOAD = """
model, _ = load_policy(folder / "policy")
touch(model)
"""
PREFIX, WIDTH, CODES, TOKENS = 120, 2048, 16384, 256  # LlamaGen's t2i: T5's width, a picture of 16 x 16 codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """xl.pt as LlamaGen saves it, and small stand-ins for the parts that it leaves out; policy/ comes of the import."""
    folder = tmp_path_factory.mktemp("xl")
    subprocess.run([sys.executable, __file__, folder / "xl.pt"], check=True)  # what it frees is free
    t5 = T5Config(d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=16)
    T5EncoderModel(t5).save_pretrained(folder / "t5")
    text_tokenizer().save_pretrained(folder / "t5")
    CLIPVisionModel(CLIPVisionConfig(**CLIP)).save_pretrained(folder / "clip")
    vq = VQConfig(image_size=256, channels=32, multipliers=(1,), residual_blocks=1, codebook_size=CODES, stem_patch=16)
    VQModel(vq).save_pretrained(folder / "vq")
    yield folder
    shutil.rmtree(folder)  # pytest keeps the folders of its last three runs


def save_checkpoint(file: Path) -> None:
    facts, _ = fixture("decoder_xl")
    torch.save({"model": {key: formula_weight(key, shape) for key, shape in facts["keys"].items()}}, file)


@pytest.mark.large
@torch.no_grad()
def test_llamagen_xl(folder: Path) -> None:
    size = (folder / "xl.pt").stat().st_size
    assert size > 3.1e9
    assert grown(folder, IMPORT) < LIMIT * size
    assert grown(folder, LOAD) < LIMIT * (folder / "policy" / "model.safetensors").stat().st_size

    facts, expected = fixture("decoder_xl")
    model, _ = load_policy(folder / "policy")
    (length,) = facts["prefix_lengths"]
    features = formula_data("decoder_xl.prefix", [1, PREFIX, WIDTH])
    features[:, : PREFIX - length] = 0
    mask = torch.arange(PREFIX)[None] >= PREFIX - length
    tokens = formula_tokens("decoder_xl.tokens", [1, TOKENS], CODES)
    hidden = model(mode="hidden", prefix=Prefix(features, mask, torch.zeros(1, PREFIX, 2)), tokens=tokens)
    logits = (hidden @ model.head_weight().T)[0]
    np.testing.assert_allclose(logits[expected["positions"], :64], expected["fixed.logits_first64"], atol=1e-4)
    np.testing.assert_allclose(logits.logsumexp(-1), expected["fixed.logsumexp"], atol=1e-4)
    assert logits.argmax(-1).tolist() == expected["fixed.argmax"].tolist()
    loss = F.cross_entropy(logits, tokens[0]).item()
    assert loss == pytest.approx(float(expected["fixed.loss"]), abs=1e-4)


if __name__ == "__main__":
    save_checkpoint(Path(sys.argv[1]))
