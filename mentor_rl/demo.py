"""``mentor demo``: from the shipped stage-2 policy to an RL-tuned one, measured, exported and shown, in minutes.

Nothing here is special to the demo: it calls what ``mentor train``, ``evaluate``, ``export`` and ``report`` call, on
the shipped recipes with fewer steps and fewer benchmark items. Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from mentor_base.errors import UserError
from mentor_rl.commands.evaluate import evaluate_recipe
from mentor_rl.commands.train import train_recipe
from mentor_rl.evaluate.emojibench_run import relative_changes
from mentor_rl.evaluate.result import Result
from mentor_rl.export import export_run
from mentor_rl.report.page import write_report

RECIPES = Path("recipes/emoji")
# Without guidance a step is cheaper and its gain larger: the recipe's 300 at guidance 3 take a quarter of an hour.
SHORT = ("algorithm.guidance.scale=1", "rewards.style.weight=2")
BENCH = ("items=96", "splits=[unseen_subjects,unseen_pairs]", "seeds=[0,1,2]")


def run_demo(out: Path, steps: int) -> None:
    """Train, measure before and after, export, report; everything goes below ``out``."""
    if not RECIPES.is_dir():
        raise UserError(f"{RECIPES}: expected the shipped recipes, found none; run this in a clone of the repository")
    console, started = Console(), time.monotonic()

    console.rule("1/4  GRPO on the shipped policy")
    tuned = out / "grpo"
    train_recipe(RECIPES / "grpo_subject.yaml", [f"run={tuned}", f"optimisation.steps={steps}", *SHORT], dry_run=False)

    console.rule("2/4  EmojiBench on what training never saw: without guidance, then each at its own best")
    plain, bench = out / "bench_without_guidance", out / "bench"
    policies = f"policies={{before: checkpoints/stage2, after: {tuned}}}"
    for run, settings in ((plain, ("guidance=[1]", "baselines=false")), (bench, ("guidance=[1,2,3,4,5]",))):
        evaluate_recipe(RECIPES / "bench.yaml", [f"run={run}", policies, *BENCH, *settings], dry_run=False)

    console.rule("3/4  Export")
    policy = out / "policy"
    if not policy.exists():
        export_run(tuned, policy, "float32")
    console.print(f"{policy}: load it with MentorForConditionalGeneration.from_pretrained, or try")
    console.print(f'  mentor sample {policy} --text "a fox in flat style on a blue background" --out fox.png')

    console.rule("4/4  Report")
    page = write_report([tuned, bench, plain], out / "report.html")
    console.print(f"{page}: open it in a browser")
    for run in (plain, bench):
        console.print(_verdict(Result.read(run / "results" / "emojibench.json")))
    console.print(f"{time.monotonic() - started:.0f} s in all")


def _verdict(result: Result) -> str:
    """One line: the paired change of CP, PF and their product on all held-out items."""
    split, shares = list(relative_changes(result, "before", "after").items())[-1]
    parts = [f"{metric} {share}" for metric, share in shares.items()]
    scales = result.details["guidance"].values()
    asked = "without guidance" if set(scales) == {1} else f"guidance {' and '.join(f'{scale:g}' for scale in scales)}"
    return f"{split}, {asked}: {', '.join(parts)} (95 % bootstrap over items)"
