"""The launch files pass accelerate's own loader, and ask for what their names say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "recipes" / "launch"
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
    "fsdp2": DistributedType.FSDP,
}


def test_each_launch_file_is_tested() -> None:
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_takes_it(name: str) -> None:
    file = LAUNCH / f"{name}.yaml"
    config: Any = load_config_from_file(str(file))  # refuses unknown keys
    assert config.distributed_type == KINDS[name]
    assert (config.num_processes, config.num_machines, config.machine_rank) == (8, 1, 0)
    parser = launch_command_parser()
    given = ["--config_file", str(file), "--num_processes", "16", "-m", "mentor_rl", "train", "x.yaml"]
    args, _, _ = _validate_launch_command(parser.parse_args(given))
    assert (args.num_processes, args.module, args.training_script) == (16, True, "mentor_rl")
    known = {action.dest for action in parser._actions} | {"zero3_init_flag"}
    sections = yaml.safe_load(file.read_text())
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(sections.get(section, {})) <= known, "accelerate would pass over a misspelt key"


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_files_name_their_json(stage: int) -> None:
    config: Any = load_config_from_file(str(LAUNCH / f"zero{stage}.yaml"))
    named = config.deepspeed_config["deepspeed_config_file"]
    facts = json.loads((ROOT / named).read_text())
    assert facts["zero_optimization"]["stage"] == stage
    assert facts["bf16"] == {"enabled": "auto"}, "the recipe decides"
    assert config.deepspeed_config["zero3_init_flag"] is False, "checkpoints are loaded whole, strictly"


def test_fsdp2_deals_out_blocks() -> None:
    config: Any = load_config_from_file(str(LAUNCH / "fsdp2.yaml"))
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
