"""Low-rank adapters (LoRA, arXiv 2106.09685) in the parts that a plan trains, through peft.

    add_adapters(policy, train, seed)        the base is frozen, the adapters train; at first they change nothing
    WithoutAdapters(policy)                  the frozen policy that training started from, at no cost: GRPO's reference
    merged_state(policy, policy.state_dict())  the tensors of a plain policy that does what the adapted one does

The policy stays what it is, a MentorForConditionalGeneration: peft replaces its linear layers in place, and its own
wrapper class, which knows nothing of ``mode``, is left out. States of a run hold base and adapters; ``final`` holds a
plain policy, and its adapter beside it in peft's format.

Shapes: I inputs and O outputs of a layer, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from mentor_base.config import MentorConfig
from mentor_base.errors import UserError, nearest
from mentor_base.model import PARTS, MentorForConditionalGeneration
from mentor_base.settings import TrainedParts

ADAPTER = "default"  # peft's name for the one adapter
FOLDER = "adapter"  # beside a finished model, in peft's format
BASE = "base_layer"  # what peft calls a layer inside its adapted one
READ_AS_TABLES = ("decoder.head", "decoder.codebook_out")  # Decoder.tables reads their weights and never calls them


def add_adapters(policy: MentorForConditionalGeneration, train: TrainedParts, seed: int) -> None:
    """Freeze the policy and put a trainable adapter into each linear layer that ``train`` names.

    The adapters' numbers depend on ``seed`` alone, not on what was drawn before.

    Raises:
        UserError: no peft, an unknown target, or no layer to adapt.
    """
    lora = train.lora
    if lora is None:
        raise ValueError("add_adapters: expected train.lora, found none")
    peft = import_peft()
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=adapted_layers(policy, train),
        bias="none",
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, policy, ADAPTER)


def check_adapters(config: MentorConfig, train: TrainedParts) -> None:
    """Refuse what ``add_adapters`` would refuse, before there is a weight: in a policy of these sizes on no device.

    Raises:
        UserError: as ``add_adapters``.
    """
    if train.lora is not None:
        import_peft()
        with torch.device("meta"):
            adapted_layers(MentorForConditionalGeneration(config), train)


def adapted_layers(policy: MentorForConditionalGeneration, train: TrainedParts) -> list[str]:
    """Names of the linear layers that get an adapter.

    Raises:
        UserError: a target that no linear layer of the trained parts is called, or parts without linear layers.
    """
    starts = tuple(f"{PARTS[part]}." for part in train.parts)
    layers = [
        name
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(starts) and name not in READ_AS_TABLES
    ]
    known = {name.rpartition(".")[2] for name in layers}
    targets = known if train.lora is None or train.lora.targets is None else train.lora.targets
    for target in targets:
        if target not in known:
            raise UserError(
                f"train.lora.targets: '{target}' is no linear layer of {', '.join(train.parts)} that an adapter can "
                f"sit in; {nearest(target, known)}"
            )
    if not layers:
        raise UserError(f"train.lora: expected linear layers in {', '.join(train.parts)}, found none")
    return [name for name in layers if name.rpartition(".")[2] in targets]


def adapters(policy: nn.Module) -> dict[str, Any]:
    """The adapted layers by name, as peft's LoraLayer; empty where there are none."""
    if not hasattr(policy, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in policy.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def adapters_off(policy: nn.Module) -> Iterator[None]:
    """The policy as it was before its adapters were trained, inside the block."""
    layers = adapters(policy).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class WithoutAdapters(nn.Module):
    """A policy with its adapters switched off, in eval mode and without gradient: its own frozen reference."""

    def __init__(self, policy: MentorForConditionalGeneration) -> None:
        super().__init__()
        self.policy = policy

    @torch.no_grad()
    def forward(self, mode: str, **kwargs: Any) -> Any:
        """As the policy's own ``forward``."""
        training = self.policy.training
        self.policy.eval()
        try:
            with adapters_off(self.policy):
                return self.policy(mode=mode, **kwargs)
        finally:
            self.policy.train(training)


def merged_state(policy: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a plain policy: weight_OI + scaling * B_OR A_RI in place of base and adapter. ``state`` is kept.

    ``state`` holds whole tensors under the adapted policy's names (a sharded trainer gathers them).
    """
    layers = adapters(policy)
    merged = {}
    for name, value in state.items():
        owner, _, rest = name.partition(f".{BASE}.")
        if owner in layers and rest == "weight":
            down_RI, up_OR = (state[f"{owner}.lora_{side}.{ADAPTER}.weight"].float() for side in "AB")
            change_OI = layers[owner].scaling[ADAPTER] * (up_OR @ down_RI)
            value = (value.float() + change_OI).to(value.dtype)
        if not _is_adapters(name):
            merged[f"{owner}.{rest}" if owner in layers else name] = value
    return merged


def save_adapter(policy: nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """The adapter alone, in peft's format: adapter_config.json and adapter_model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = policy.peft_config
    config[ADAPTER].save_pretrained(str(folder))
    own = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": value.contiguous()
        for name, value in state.items()
        if _is_adapters(name)
    }
    save_file(own, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def count_parameters(policy: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """``total``: of the plain policy. ``trained``: weights that change, or the adapters' own."""
    parameters = dict(policy.named_parameters())
    return {
        "total": sum(state[name].numel() for name in parameters if not _is_adapters(name)),
        "trained": sum(state[name].numel() for name, parameter in parameters.items() if parameter.requires_grad),
    }


def import_peft() -> ModuleType:
    """peft, or the line that says how to get it."""
    try:
        import peft
    except ImportError as error:
        raise UserError(f"train.lora: {error}; install the extra: pip install 'mentor-rl[peft]'") from error
    module: ModuleType = peft
    return module


def _is_adapters(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name
