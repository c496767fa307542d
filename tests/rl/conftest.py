"""A policy small enough to build in each test session: random weights, 32-pixel pictures of 16 tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random policy and its processor; never write into it."""
    import torch

    from mentor_base.build import build_policy
    from mentor_base.checkpoint import save_policy
    from mentor_base.settings import PolicyModel
    from mentor_base.vq import VQConfig, VQModel

    torch.manual_seed(0)
    vq = VQModel(
        VQConfig(
            image_size=32,
            channels=16,
            multipliers=(1, 2),
            latent_channels=16,
            codebook_size=64,
            stem_patch=4,
            normalisation="none",
            attention=False,
        )
    ).eval()
    narrow = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    text = {"t5_config.num_layers": 1, "t5_config.d_model": 32, "t5_config.d_kv": 16, "t5_config.d_ff": 32}
    model, processor = build_policy(PolicyModel(options={**narrow, **text}), vq, ["a red fox in line art style"])
    torch.nn.init.normal_(model.decoder.head.weight, std=0.5)  # a new head is zero: all tokens would be equal
    folder = tmp_path_factory.mktemp("random_policy")
    save_policy(model, processor, folder)
    return folder


@pytest.fixture(scope="session")
def other_policy(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``random_policy`` with another head, as another training seed would leave it."""
    import torch

    from mentor_base.checkpoint import load_policy, save_policy

    model, processor = load_policy(random_policy)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.decoder.head.weight, std=0.5)
    folder = tmp_path_factory.mktemp("other_policy")
    save_policy(model, processor, folder)
    return folder


@pytest.fixture
def grpo_run(random_policy: Path, tmp_path: Path) -> Path:
    """A run folder as GRPO leaves it, around the random policy."""
    import shutil

    from mentor_base.data.schema import Prompt
    from mentor_base.runlog import RunFolder
    from mentor_rl import gallery

    recipe = {
        "kind": "grpo",
        "run": "runs/foxes",
        "seed": 7,
        "about": "foxes in other styles",
        "policy": "recipes/emoji/checkpoints/stage2",
        "prompts": {"data": {"source": "emoji"}},
    }
    run = RunFolder.open(tmp_path / "runs" / "foxes", recipe)
    for step in range(4):
        run.log(step, **{"rewards/style/mean": 0.1 * step, "kl": 0.01 * step, "loss": 0.0})
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    gallery.save_prompts(run, [Prompt("<image> this red fox in line art style", (red,))])
    gallery.save_step(run, 0, [red], [{"style": 0.1}])
    gallery.save_step(run, 3, [blue], [{"style": None}])
    red.save(run.sample_path(3, "subject"))
    metrics = {"after RL": {"CP": [0.5, 0.4, 0.6], "PF": 0.25}}
    result = {"benchmark": "emojibench", "metrics": metrics}
    run.result_path("emojibench").write_text(json.dumps(result), encoding="utf-8")
    shutil.copytree(random_policy, run.final)
    return run.path
