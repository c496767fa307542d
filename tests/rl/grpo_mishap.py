"""A GRPO recipe from JSON, as grpo_toys.py runs it, whose third update gets a NaN from the second process alone, and
whose fixed prompts are worth what ``WORTH`` says. As a script, in each process: grpo_mishap.py RECIPE NOTES

Each process writes its weights after each step to NOTES/<rank>_<step>.safetensors, and the steps whose policy it hands
over to be kept to NOTES/<rank>_kept.json.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from grpo_toys import run_recipe
from safetensors.torch import save_file

STEPS, SPOILT = 5, 3
WORTH = {0: 0.2, 1: 0.5, 2: 0.9, 3: 0.9, 4: 0.95, 5: 0.4}
KEPT = [0, 1, 2, 4]


def dictate(notes: Path, rank: int) -> None:
    """Put the NaN, the values and the notes in the way of the run that follows."""
    import mentor_rl.grpo_run as grpo_run
    from mentor_base.engines import whole_state
    from mentor_rl.monitors.fixed_prompts import FixedPrompts
    from mentor_rl.trainer import MentorGRPOTrainer

    loss_of, watch, record, kept = MentorGRPOTrainer.compute_loss, MentorGRPOTrainer.watch, FixedPrompts.record, []

    def spoilt(self: MentorGRPOTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = loss_of(self, *args, **kwargs)
        return loss * float("nan") if rank == 1 and self.state.global_step == SPOILT - 1 else loss

    def noted(self: MentorGRPOTrainer, step: int) -> None:
        watch(self, step)
        weights = whole_state(self.accelerator.unwrap_model(self.model))
        save_file({name: value.clone() for name, value in weights.items()}, notes / f"{rank}_{step}.safetensors")

    def worth(self: FixedPrompts, rollout: Any, step: int) -> dict[str, float]:
        return record(self, rollout, step) | {"eval/brightness": WORTH[step]}

    def handed_over(policy: torch.nn.Module) -> Mapping[str, torch.Tensor]:
        kept.append(len(list(notes.glob(f"{rank}_*.safetensors"))))  # the step that is being watched
        (notes / f"{rank}_kept.json").write_text(json.dumps(kept))
        return whole_state(policy)

    MentorGRPOTrainer.compute_loss, MentorGRPOTrainer.watch = spoilt, noted
    FixedPrompts.record, grpo_run.whole_state = worth, handed_over


if __name__ == "__main__":
    torch.set_num_threads(1)
    dictate(Path(sys.argv[2]), int(os.environ.get("RANK", "0")))
    run_recipe(json.loads(Path(sys.argv[1]).read_text()))
    os._exit(0)  # process groups of finished workers are not worth waiting for
