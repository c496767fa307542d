"""What a step of the sampler cannot do without: the products with its weights, and reading its keys and values.

    python benchmarks/step_limits.py --size tiny [--repeats 15]

The rollout of RESULTS.md (4 prompts x 8 pictures, guidance 7.5, float32), in the middle of the picture. Timed in turns
in one process: our step; the same products with the same weights and nothing else; attention's products with the
pictures' own keys and values of that length and nothing else; the reference's step. What is left of our step is all
small operations together: norms, rotations, softmax, residuals, the draw. The last line says how many times faster than
the reference a step would be that did nothing but the two kinds of products.

Shapes: R rows of a step, J keys of a picture.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from mentor_base.products import Weight, linear
from mentor_rl.bench.decoder_policy import plain_config, random_policy, random_prefix
from mentor_rl.bench.rollout import Ours, Reference, RolloutSettings

TOKENS, PREFIX = 256, 120
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    settings = RolloutSettings(
        size=arguments.size, batch=32, prompts=4, guidance=7.5, prefix=PREFIX, tokens=TOKENS, dtype="float32",
        against="reference", repeats=1, seed=0, device="cpu",
    )  # fmt: skip
    works = works_of(settings)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(arguments.repeats + 2):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - began)
    report({name: 1000 * statistics.median(found) for name, found in seconds.items()})


@torch.no_grad()
def works_of(settings: RolloutSettings) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    config = plain_config(settings.size, settings.tokens, settings.prefix)
    policy = random_policy(config, CPU, torch.float32, settings.seed)
    prefix = random_prefix(config, settings.prompts, settings.prefix, CPU, torch.float32, settings.seed + 1)
    ours, reference, place = Ours(policy, prefix, settings), Reference(policy, prefix, settings), settings.tokens // 2
    ours.prefill()
    reference.prefill()
    products, attention = list(products_of(ours)), list(attention_of(ours, place))
    return {
        "our step": without_gradient(lambda: ours.step(place)),
        "products": without_gradient(lambda: [linear(x, weight) for x, weight in products]),
        "keys and values": without_gradient(lambda: [a @ b for a, b in attention]),
        "reference's step": without_gradient(lambda: reference.step(place)),
    }


def without_gradient(work: Callable[[], object]) -> Callable[[], object]:
    def quietly() -> object:
        with torch.no_grad():
            return work()

    return quietly


def products_of(ours: Ours) -> Iterator[tuple[torch.Tensor, Weight]]:
    """Rows and weight of each product of a step, head included, whose rows guidance has mixed."""
    cache, decoder = ours.decoding.cache, ours.policy.decoder
    rows = len(ours.decoding.hidden)
    for block in decoder.blocks:
        for layer in (block.qkv, block.out, block.gate_up, block.down):
            yield torch.randn(rows, layer.in_features), cache.weights.get(layer, layer.weight)
    yield torch.randn(rows // 2, decoder.config.hidden_size), cache.head


def attention_of(ours: Ours, keys: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Factors of the two products with ``keys`` of each picture's own keys and values, for each block."""
    for own_k, own_v in ours.decoding.cache.own:
        k, v = own_k[:, :, :, :keys], own_v[:, :, :, :keys]
        yield torch.randn_like(k[:, :, :, :1]), k.transpose(-1, -2)
        yield torch.rand(*k.shape[:3], 1, keys), v


def report(milliseconds: dict[str, float]) -> None:
    ours, reference = milliseconds["our step"], milliseconds["reference's step"]
    needed = milliseconds["products"] + milliseconds["keys and values"]
    for name, found in milliseconds.items():
        print(f"{name:<18} {found:7.2f} ms   {found / ours:5.0%} of our step")
    print(f"{'small operations':<18} {ours - needed:7.2f} ms   {1 - needed / ours:5.0%} of our step")
    print(
        f"our step is {reference / ours:.2f} times as fast; products, keys and values alone: {reference / needed:.2f}"
    )


if __name__ == "__main__":
    main()
