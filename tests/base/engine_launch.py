"""A training script under accelerate's engines where there is no GPU, in two gloo processes.

    launched("fsdp2", SCRIPT, ARGUMENTS...)

accelerate starts FSDP and DeepSpeed on a GPU only. Here its own launcher makes the environment from a launch file of
ours, and one patch lets the processes take gloo and the CPU for a GPU's; all that then prepares, steps and saves is
accelerate's and the Trainer's own.

As a script, in each process: engine_launch.py SCRIPT ARGUMENTS...
"""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launched(engine: str, script: Path, *arguments: str | Path) -> None:
    """Run ``script`` in two processes as ``accelerate launch`` does with the launch file of ``engine``, in float32."""
    done = attempt(engine, script, *arguments)
    assert done.returncode == 0, done.stderr[-5000:]


def attempt(engine: str, script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    return subprocess.run(
        [*command, __file__, script, *map(str, arguments)],
        env={**environment(engine), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
    )


def environment(engine: str) -> dict[str, str]:
    """What accelerate's launcher tells the processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    file = ROOT / "recipes" / "launch" / f"{engine}.yaml"
    given = ["--config_file", str(file), "--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*given, "script.py"]))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""  # as the launch command sets it; our JSON has all of them
        found: dict[str, str] = prepare_deepspeed_cmd_env(args)[1]
    else:
        found = prepare_multi_gpu_env(args)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def take_the_cpu_for_a_gpu() -> None:
    if not {os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED")} & {"true"}:
        return  # DDP runs on CPUs as it is
    import torch
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    torch.accelerator.is_available = lambda: True  # or the Trainer asks for the CPU, which has no engines
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo will do; it would be compiled here


if __name__ == "__main__":
    take_the_cpu_for_a_gpu()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)  # process groups of finished workers are not worth waiting for
