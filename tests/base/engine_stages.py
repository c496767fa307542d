"""Small supervised runs one after the other in the same processes, whose imports are paid for once.

engine_stages.py WORLD OUT stage|lora|projector ...     with engine_launch.py: two processes under an engine

Each run goes to OUT/KIND. WORLD: ``make_world``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from PIL import Image
from policies import small_policy
from row_files import write_jsonl
from tiny_stage import train_tiny, without_dropout
from transformers import T5Config, T5ForConditionalGeneration

import mentor_base.sft
from mentor_base.checkpoint import load_policy, save_policy
from mentor_base.settings import (
    CONNECTOR_ALONE,
    Checkpoints,
    JsonlData,
    Lora,
    Mixture,
    Optimisation,
    Stage,
    TrainedParts,
    Validation,
)

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "yellow": (240, 220, 30)}
TRAINED = {
    "stage": TrainedParts(text_encoder=True),
    "lora": TrainedParts(text_encoder=True, lora=Lora(rank=2)),
    "projector": CONNECTOR_ALONE,
}
STEPS = 3


def make_world(folder: Path) -> Path:
    """policy/, a T5 that holds its text encoder, and four coloured pictures with their captions."""
    policy, processor = small_policy(**{"t5_config.num_layers": 2})
    save_policy(policy, processor, folder / "policy")
    names = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size", "feed_forward_proj")
    sizes = {name: getattr(policy.config.t5_config, name) for name in names}
    T5ForConditionalGeneration(
        T5Config(**sizes, num_decoder_layers=1, decoder_start_token_id=0, tie_word_embeddings=False)
    ).save_pretrained(folder / "t5")
    rows = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (16, 16), colour).save(folder / f"{name}.png")
        rows.append({"task": "t2i", "text": f"a {name} square", "target": f"{name}.png"})
        rows.append(
            {"task": "reconstruction", "text": f"<image> a {name} square", "images": [f"{name}.png"]}
            | {"target": f"{name}.png"}
        )
    write_jsonl(folder, *rows)
    return folder


def run_stage(world: Path, out: Path, kind: str) -> Path:
    """Text-only rows and rows with pictures, mixed; validation with a drawn grid before and after."""
    rows = str(world / "rows.jsonl")
    weights = {"t2i": 1} if kind == "projector" else {"t2i": 1, "reconstruction": 1}
    stage = Stage(
        name="projector" if kind == "projector" else "alignment",
        mixture=Mixture(data=JsonlData(train=rows, val=rows), weights=weights),
        train=TRAINED[kind],
        captioner=str(world / "t5") if kind == "projector" else None,
    )
    with patch.object(mentor_base.sft, "load_policy", lambda path: without_dropout(*load_policy(path))):
        run = train_tiny(
            world / "policy",
            out / kind,
            stage=stage,
            optimisation=Optimisation(
                lr=1e-2, steps=STEPS, batch=4, micro_batch=1, threads=1, gradient_checkpointing=True
            ),
            validation=Validation(every=STEPS, examples=3, grid=1),
            checkpoints=Checkpoints(every=STEPS),
        )
    return run.path


if __name__ == "__main__":
    for wanted in sys.argv[3:]:
        run_stage(Path(sys.argv[1]), Path(sys.argv[2]), wanted)
