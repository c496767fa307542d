"""Import and load times: each in a process of its own, so that its peak of memory is its own.

``--size`` makes a LlamaGen checkpoint of random weights in a temporary folder (XL: 3.1 GB), with T5, CLIP and VQ as
small as their shapes allow: what is measured is the decoder's file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mentor_base.config import SIZES, MentorConfig
from mentor_base.decoder import Decoder
from mentor_base.errors import UserError, nearest

SMALL_T5 = {"d_model": 2048, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
SMALL_CLIP = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_VQ = {"image_size": 256, "channels": 32, "residual_blocks": 1, "attention": False}
CONTEXT = 120  # LlamaGen's


def bench_load(source: Path | None, size: str | None) -> dict[str, Any]:
    """The numbers of a record: a policy folder is loaded; a size is made, imported, and loaded.

    Raises:
        UserError: neither or both are given, or an unknown size.
    """
    if (source is None) == (size is None):
        raise UserError("bench load: expected either SOURCE (a policy's folder) or --size")
    if source is not None:
        return {"checkpoint_bytes": weights_bytes(source), "import": None, "load": _in_process("load", source, source)}
    if size not in SIZES:
        raise UserError(f"--size: unknown size '{size}'; {nearest(str(size), SIZES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_parts(folder)
        file = write_decoder(size, folder)
        out = folder / "imported"
        out.mkdir()
        found = _in_process("import", folder, file)
        file_bytes = file.stat().st_size
        file.unlink()  # two copies of a large size are enough
        return {"checkpoint_bytes": file_bytes, "import": found, "load": _in_process("load", out, out)}


def weights_bytes(path: Path) -> int:
    """Of a file, or of all weights in a folder."""
    if path.is_file():
        return path.stat().st_size
    files = [*path.glob("*.safetensors"), *path.glob("final/*.safetensors")]
    if not files:
        raise UserError(f"{path}: expected a policy's folder, found no *.safetensors in it")
    return sum(file.stat().st_size for file in files)


def write_decoder(size: str, folder: Path) -> Path:
    """Random weights of a size under LlamaGen's names, float32."""
    from mentor_base.interchange.exporting import reference_state
    from mentor_base.interchange.names import LLAMAGEN

    config = MentorConfig.of_size(size, context_length=CONTEXT)
    if config.factorised_codebook:
        raise UserError(f"--size: expected a size that LlamaGen has, found '{size}'")
    with torch.device("meta"):
        shapes = {f"decoder.{name}": tensor for name, tensor in Decoder(config).state_dict().items()}
    state = {
        name: torch.empty(tensor.shape).normal_(std=0.02) for name, tensor in reference_state(shapes, LLAMAGEN).items()
    }
    file = folder / f"{size}.pt"
    torch.save({"model": state}, file)
    return file


def write_parts(folder: Path) -> None:
    """T5, CLIP, text tokenizer and VQ folders around the decoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

    from mentor_base.checkpoint import quiet
    from mentor_base.vq import VQConfig, VQModel

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    vision = CLIPVisionConfig(**SMALL_CLIP, image_size=28, patch_size=14)
    with quiet():
        T5EncoderModel(T5Config(**SMALL_T5, feed_forward_proj="gated-gelu")).save_pretrained(str(folder / "t5"))
        text.save_pretrained(str(folder / "t5"))
        CLIPVisionModel(vision).save_pretrained(str(folder / "clip"))
        VQModel(VQConfig(**SMALL_VQ)).save_pretrained(str(folder / "vq"))


def _in_process(work: str, folder: Path, measured: Path) -> dict[str, float]:
    """Run ``load_process`` and put its peak beside the size of what it reads."""
    command = [sys.executable, "-m", "mentor_rl.bench.load_process", work, str(folder), str(measured)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise UserError(f"bench load: {work} of {measured}: {''.join(last)}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "peak_share": found["peak_bytes"] / weights_bytes(measured)}
