"""Pictures per second and memory of each reward with a network, at its published size with random weights.

    python benchmarks/reward_throughput.py [--device cuda:0 --dtype bfloat16] [--pictures 8] [--only dino ...]

Every reward has a process of its own: a checkpoint is written, the reward loads it as it would load the published one,
one call warms up, and the figure is the median of the calls after it: on a GPU by the clock, on the CPU by the CPU time
of the process (a core's second is a second also where other work shares the machine). Pictures are 256 x 256, in groups
of 8 with one prompt and one reference each, so prompts and references are embedded once a group, as in training. Memory
is what the process (or the GPU) holds more than before: after ``load``, and at most while loading and scoring.

The table goes to stdout; benchmarks/REWARDS.md holds tables of this script.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shlex
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import reward_weights as weights
import torch
from mentor_rewards.contract import Reward, RewardBatch, RewardEntry
from mentor_rewards.registry import build_reward
from PIL import Image

from mentor_rl.bench.machine import PeakMemory, machine_facts, now, resident, versions

GROUP, SIDE = 8, 256
MODELS: dict[str, tuple[str, str, weights.Write]] = {
    "hpsv2": ("hpsv2", "CLIP ViT-H/14", weights.hpsv2),
    "pickscore": ("pickscore", "CLIP ViT-H/14", weights.pickscore),
    "image_reward": ("image_reward", "BLIP, ViT-L/16 and BERT-base", weights.image_reward),
    "aesthetic": ("aesthetic", "CLIP ViT-L/14", weights.aesthetic),
    "clip_text": ("clip_text", "CLIP ViT-B/32", weights.clip_b32),
    "clip_image": ("clip_image", "CLIP ViT-B/32", weights.clip_b32),
    "dino": ("dino", "ViT-S/8", weights.dino_s8),
    "dino_s16": ("dino", "ViT-S/16", weights.dino_s16),
    "dinov2": ("dinov2", "ViT-S/14", weights.dinov2_s14),
    "efficientnet_similarity": ("efficientnet_similarity", "EfficientNet-Lite0", weights.installed),
}


@dataclass(frozen=True)
class Measured:
    """One reward: seconds of load and of each timed call, bytes after load and at most, and the machine."""

    load: float
    calls: list[float]
    held: int
    peak: int
    facts: dict[str, object]


def rollout(pictures: int) -> RewardBatch:
    """Random pictures in groups of GROUP."""
    rng = np.random.default_rng(0)
    drawn = [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(pictures + pictures)]
    groups = [row // GROUP for row in range(pictures)]
    return RewardBatch(
        images=drawn[:pictures],
        prompts=[" ".join(f"word{17 * group + n}" for n in range(12)) for group in groups],
        references=[(drawn[pictures + group],) for group in groups],
        subjects=[None] * pictures,
        group_ids=groups,
        metadata=[{}] * pictures,
    )


def measure(name: str, device: str, dtype: str, pictures: int, calls: int, threads: int) -> Measured:
    """Runs in a process of its own."""
    torch.set_num_threads(threads)
    where = torch.device(device)
    use, _, write = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        reward = build_reward(use, RewardEntry(options=write(Path(folder))))
        assert isinstance(reward, Reward)
        memory, start = PeakMemory(where), _seconds(where)
        reward.load(device, dtype)
        load, held = _seconds(where) - start, _in_use(where) - memory.before
        seconds = []
        for _ in range(calls + 1):
            batch = rollout(pictures)  # a new one, or the embeddings of the last call would be taken
            start = _seconds(where)
            reward.score(batch)
            seconds.append(_seconds(where) - start)
        return Measured(load, seconds[1:], held, memory.grown(), machine_facts(where))


def _seconds(device: torch.device) -> float:
    return now(device) if device.type == "cuda" else time.process_time()


def _in_use(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident("VmRSS")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--pictures", type=int, default=8, help="in one call")
    parser.add_argument("--calls", type=int, default=3, help="timed ones")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    arguments = (options.device, options.dtype, options.pictures, options.calls, options.threads)
    for number, name in enumerate(options.only):
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            found = process.submit(measure, name, *arguments).result()
        if number == 0:
            words = ", ".join(f"{key} {value}" for key, value in {**found.facts, **versions()}.items())
            print(f"`python {shlex.join(sys.argv)}`\n\n{words}\n")
            print("| reward | network | pictures/s | load s | GB after load | GB at most |")
            print("|---|---|---|---|---|---|")
        rate = options.pictures / statistics.median(found.calls)
        memory = f"{found.held / 1e9:.2f} | {found.peak / 1e9:.2f}"
        print(f"| `{name}` | {MODELS[name][1]} | {rate:.3g} | {found.load:.1f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
