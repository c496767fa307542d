"""Policies whose weights are dealt out over processes (FSDP2, DeepSpeed ZeRO-3), made whole for sampling and saving.

Outside of a forward pass a process holds a part of each weight only, but the sampler reads the token tables between its
steps, and a finished policy is written by one process. Every process has to come here at the same time. On a policy
that is whole anyway all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

Value = TypeVar("Value")


@contextmanager
def whole(policy: nn.Module) -> Iterator[None]:
    """All weights on every process, inside the block. They must not be changed there."""
    shards = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    parts = _of_zero3(policy)
    if parts:
        import deepspeed

        with deepspeed.zero.GatheredParameters(parts):
            yield
        return
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:  # the root stays gathered from forward to backward, as torch and accelerate set it up
            module.set_reshard_after_forward(module is not policy, recurse=False)
            module.reshard()


def dealt_out(policy: nn.Module) -> bool:
    """Whether passes gather weights from the other processes, which therefore have to make as many of them."""
    return isinstance(policy, FSDPModule) or bool(_of_zero3(policy))


def tokenizer_state(policy: nn.Module) -> dict[str, torch.Tensor]:
    """The VQ tokenizer's tensors as they were loaded: DeepSpeed casts them to bf16, and other numbers are other codes.

    To be asked for before an engine has the policy.
    """
    return {name: value for name, value in policy.state_dict().items() if name.startswith("vq.")}


def whole_state(policy: nn.Module) -> dict[str, torch.Tensor]:
    """The policy's tensors, whole; on the CPU where they had to be gathered."""
    if _of_zero3(policy):
        with whole(policy):
            return {name: value.detach().cpu().clone() for name, value in policy.state_dict().items()}
    return {
        name: value.full_tensor().cpu() if isinstance(value, DTensor) else value
        for name, value in policy.state_dict().items()
    }


def of_main_process(value: Value) -> Value:
    """What the main process passes, on every process."""
    held = [value]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(held)
    return held[0]


def _of_zero3(policy: nn.Module) -> list[nn.Parameter]:
    """Parameters that DeepSpeed has dealt out; it gives each of them an id."""
    return [parameter for parameter in policy.parameters() if hasattr(parameter, "ds_id")]
