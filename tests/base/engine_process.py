"""Two processes under engines: a forward and a backward pass over a part of a batch each; a script of test_engines.py.

engine_process.py OUT ddp|fsdp2|zero2|zero3 ...

Process 0 has prompts without pictures, of one length; process 1 prompts with one and with two, whose batch one process
would cut in two (prompt_batch.py). OUT/ENGINE.safetensors holds the mean loss, the whole gradients, a sample and the
state. Both processes are forks of this one, which has paid for the imports.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from policies import CLIP, picture, small_policy
from safetensors.torch import save_file

from mentor_base.data.schema import Prompt
from mentor_base.engines import whole, whole_state
from mentor_base.generate import generate
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.settings import Sampling, TrainedParts
from mentor_base.sft import set_trained_parts

PROMPTS = (
    Prompt("two blue circles"),
    Prompt("a red fox"),
    Prompt("<image> cut out the boat", (picture(1),)),
    Prompt("a red fox <image> on <image> in line art style", (picture(2), picture(3))),
)
Gradients = dict[str, torch.Tensor]


def policy_and_batch(rows: Sequence[int]) -> tuple[MentorForConditionalGeneration, dict[str, Any]]:
    """The policy, all of it trained and with checkpointing, and the rows of the batch."""
    model, processor = small_policy(**CLIP)
    set_trained_parts(model, TrainedParts(vision=True, text_encoder=True))
    model.train().activation_checkpointing_enable()
    tokens_NL = torch.randint(0, 32, (4, 16), generator=torch.Generator().manual_seed(3))
    drop_N = torch.tensor([False, True, False, False])
    inputs = processor([PROMPTS[row] for row in rows])
    return model, {**inputs, "tokens": tokens_NL[list(rows)], "condition_drop": drop_N[list(rows)]}


def named(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def draw(model: MentorForConditionalGeneration) -> torch.Tensor:
    """tokens_NL of a guided sample, which reads the token tables between passes."""
    model.eval()
    prefix = model(
        mode="encode", input_ids=torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3, dtype=torch.long)
    )
    tokens_NL = generate(model, prefix, 2, Sampling(guidance_scale=2.0), torch.Generator().manual_seed(0)).tokens_NL
    model.train()
    return tokens_NL


def prefixed(start: str, tensors: Gradients) -> Gradients:
    return {f"{start}{name}": value.clone() for name, value in tensors.items()}


def alone(rows: Sequence[int]) -> tuple[torch.Tensor, Gradients]:
    """What one process makes of the batch."""
    model, inputs = policy_and_batch(rows)
    loss = model(mode="loss", **inputs).loss
    loss.backward()
    return loss.detach(), {name: copied(parameter.grad) for name, parameter in named(model).items()}


def copied(gradient: torch.Tensor | None) -> torch.Tensor:
    assert gradient is not None
    return gradient.clone()


def ddp(model: MentorForConditionalGeneration, inputs: dict[str, Any]) -> tuple[torch.Tensor, Gradients]:
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    loss = wrapped(mode="loss", **inputs).loss
    loss.backward()
    return loss, {name: copied(parameter.grad) for name, parameter in named(model).items()}


def fsdp2(model: MentorForConditionalGeneration, inputs: dict[str, Any]) -> tuple[torch.Tensor, Gradients]:
    """As accelerate does it: each block of ``_no_split_modules``, then the whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss = model(mode="loss", **inputs).loss
    loss.backward()
    return loss, {name: copied(parameter.grad.full_tensor()) for name, parameter in named(model).items()}


def zero(stage: int, model: MentorForConditionalGeneration, inputs: dict[str, Any]) -> tuple[torch.Tensor, Gradients]:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo will do; it would be compiled here
    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": stage}}
    parameters = list(named(model).values())
    engine = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(parameters), config=config)[0]
    loss = engine(mode="loss", **inputs).loss
    engine.backward(loss)
    return loss, {
        name: copied(deepspeed.utils.safe_get_full_grad(parameter)) for name, parameter in named(engine.module).items()
    }


def engine_pass(engine: str, out: Path) -> None:
    """One engine on a policy of its own; process 0 writes what it made."""
    rank = dist.get_rank()
    model, inputs = policy_and_batch((0, 1) if rank == 0 else (2, 3))
    engines = {"ddp": ddp, "fsdp2": fsdp2, "zero2": lambda *a: zero(2, *a), "zero3": lambda *a: zero(3, *a)}
    loss, gradients = engines[engine](model, inputs)
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    state = whole_state(model)
    with whole(model):
        drawn_NL = draw(model)
    again = model(mode="loss", **inputs).loss.detach()  # dealt out again
    if rank == 0:
        assert torch.equal(again, loss.detach())
        tensors = {"loss": mean / 2, "drawn": drawn_NL, **prefixed("grad/", gradients), **prefixed("state/", state)}
        save_file(tensors, out / f"{engine}.safetensors")
    dist.barrier()


def process(rank: int, out: Path, engines: Sequence[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{out / 'meeting'}", rank=rank, world_size=2)
    for engine in engines:
        engine_pass(engine, out)
    os._exit(0)  # process groups of finished workers are not worth waiting for


if __name__ == "__main__":
    mp.start_processes(process, (Path(sys.argv[1]), sys.argv[2:]), nprocs=2, start_method="fork")
