"""A policy of 16 tokens, rewards that cost nothing, GRPO recipes on them; as a script, runs a recipe from JSON."""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mentor_rewards.contract import RewardBatch, RewardOutput, RewardSpec

HERE = Path(__file__)
CORPUS = ["this red fox in a rounded cartoon style on a blue background", "two green circles on the left"]
TIMED = re.compile(r"seconds.*|.*_per_second|cpu_seconds|memory/.*|rewards/.*/seconds")  # differ from run to run


class Brightness:
    """Mean of all pixels, in [0, 1]."""

    spec = RewardSpec("brightness", "1", range=(0.0, 1.0))

    def load(self, device: str, dtype: str) -> None:
        """Nothing to load."""

    def unload(self) -> None:
        """Nothing to free."""

    def score(self, batch: RewardBatch) -> RewardOutput:
        return RewardOutput([float(np.asarray(image).mean()) / 255 for image in batch.images])


class Redness(Brightness):
    """Red minus blue; cannot score every ``every``-th picture (by its pixels, so that batches do not matter)."""

    spec = RewardSpec("redness", "1")

    def __init__(self, every: int = 0) -> None:
        self.every = every

    def score(self, batch: RewardBatch) -> RewardOutput:
        scores: list[float | None] = []
        for image in batch.images:
            pixels = np.asarray(image).astype(np.float64)
            silent = self.every and int(pixels.sum()) % self.every == 0
            scores.append(None if silent else float(pixels[..., 0].mean() - pixels[..., 2].mean()) / 255)
        return RewardOutput(scores, [None if score is not None else "toy" for score in scores])


class Silent(Brightness):
    """Scores nothing from a step on."""

    spec = RewardSpec("silent", "1")

    def __init__(self, from_step: int = 0) -> None:
        self.from_step = from_step

    def score(self, batch: RewardBatch) -> RewardOutput:
        if batch.step >= self.from_step:
            return RewardOutput([None] * len(batch), ["toy"] * len(batch))
        return super().score(batch)


class Counted(Brightness):
    """Writes down how many pictures each call has."""

    spec = RewardSpec("counted", "1", range=(0.0, 1.0))

    def __init__(self, file: str) -> None:
        self.file = file

    def score(self, batch: RewardBatch) -> RewardOutput:
        with open(self.file, "a", encoding="utf-8") as lines:
            lines.write(f"{len(batch)}\n")
        return super().score(batch)


class BreaksOnSecond(Brightness):
    """Raises in the second of several processes."""

    spec = RewardSpec("breaks", "1", range=(0.0, 1.0))

    def score(self, batch: RewardBatch) -> RewardOutput:
        if os.environ.get("RANK") == "1":
            raise ValueError("the second process met its end")
        return super().score(batch)


class Slow(Brightness):
    """Waits before it answers, as a server does."""

    spec = RewardSpec("slow", "1")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, batch: RewardBatch) -> RewardOutput:
        time.sleep(self.seconds)
        return super().score(batch)


class Ranked(Brightness):
    """The place of a picture among those of the call."""

    spec = RewardSpec("ranked", "1", batch_invariant=False)


def toy_policy(folder: Path, **options: Any) -> Path:
    """Write a random policy of 16 tokens over 32 codes, whose pictures differ in brightness and colour."""
    from mentor_base.build import build_policy
    from mentor_base.checkpoint import save_policy
    from mentor_base.settings import PolicyModel
    from mentor_base.vq import VQConfig, VQModel

    torch.manual_seed(0)
    sizes = {"channels": 16, "multipliers": (1, 2), "latent_channels": 16, "residual_blocks": 1, "stem_patch": 4}
    vq = VQModel(VQConfig(image_size=32, codebook_size=32, normalisation="none", attention=False, **sizes)).eval()
    torch.nn.init.normal_(vq.codebook, std=1.0)
    with torch.no_grad():
        for name, parameter in vq.named_parameters():
            if name.startswith("decoder") and parameter.dim() > 1:
                parameter.mul_(1.6)
    small = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "t5_config.num_layers": 1, **options}
    model, processor = build_policy(PolicyModel(size="tiny", options=small), vq, CORPUS)
    model.decoder.codebook_out.weight.data.mul_(10.0)  # far from uniform: errors in the logits have to show
    save_policy(model, processor, folder)
    return folder


def toy_recipe(policy: Path, run: Path, steps: int = 3, **changes: Any) -> dict[str, Any]:
    """A GRPO recipe on the toy; sections given as dictionaries are merged into the defaults."""
    recipe: dict[str, Any] = {
        "kind": "grpo",
        "run": str(run),
        "policy": str(policy),
        "prompts": {"weights": {"subject": 1.0}},
        "train": {"connector": False},
        "algorithm": {"group_size": 4, "prompts_per_step": 2},
        "optimisation": {"lr": 3e-3, "steps": steps, "threads": 1, "weight_decay": 0.0},
        "rewards": {"brightness": {"use": f"{HERE}:Brightness"}},
        "monitoring": {"every": 100, "prompts": 2},
        "checkpoints": {"every": 100},
    }
    for key, value in changes.items():
        replaced = not isinstance(value, dict) or key == "rewards"
        recipe[key] = value if replaced else {**recipe[key], **value}
    return recipe


def run_recipe(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Train and return the lines of metrics."""
    from mentor_rl.commands.train import open_run
    from mentor_rl.grpo_run import train_grpo
    from mentor_rl.recipe import GrpoRecipe

    recipe = GrpoRecipe.model_validate(values)
    run = open_run(recipe)  # of several processes the others wait for the first
    train_grpo(recipe, run)
    return list(run.metrics())


def comparable(line: dict[str, Any]) -> dict[str, str]:
    """A line of metrics without what times it; repr, so that NaN equals NaN and floats compare bit by bit."""
    return {key: repr(value) for key, value in line.items() if not TIMED.fullmatch(key)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_recipe(json.loads(Path(sys.argv[1]).read_text()))
    os._exit(0)  # process groups of finished workers are not worth waiting for
