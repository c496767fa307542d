"""What optimising conditional log-probs costs while the sampler guides: cosines to the true gradient, by enumeration.

    python benchmarks/guidance_bias.py [--seeds 20] [--out benchmarks/GUIDANCE_BIAS.md]

A policy over all V**L pictures of L tokens: fixed features c(prefix) and u(prefix), as a decoder with and without its
prompt would give, and one trained head over both, so that guidance mixes them as mentor_base.guidance does. A reward
for each picture is drawn at random. For each scale s, with pi_s the guided policy that pictures are drawn from:

    truth         the gradient of E_{pi_s}[r], by differentiating the sum over all pictures
    guided        the expected gradient of objective.grpo_loss with log-probs of pi_s: ours
    conditional   the same loss on the same pictures with log-probs at scale 1, where guidance is left out of the update

Both estimators see the advantage r - E[r]. The head is what is differentiated. Conditional and unconditional features
of a trained decoder are alike; ``correlation`` says how much.

Shapes: S all V**L pictures, L tokens, V codes, D features.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path

import torch
from torch.nn import functional as F

from mentor_base.guidance import policy_logits
from mentor_base.settings import Sampling
from mentor_rl.algorithm import GrpoAlgorithm
from mentor_rl.objective import grpo_loss

CODES, LENGTH, WIDTH = 4, 3, 8
PICTURES_SL = torch.tensor(list(itertools.product(range(CODES), repeat=LENGTH)))
SCALES = (1.0, 2.0, 4.0, 7.5)
CORRELATIONS = (0.5, 0.8, 0.95)
COMMAND = "python benchmarks/guidance_bias.py"


class Toy:
    """A policy and a reward for each of its pictures.

    Attributes:
        cond_SLD, uncond_SLD: features that predict token l of picture s; equal for equal prefixes.
        head_VD: trained.
        reward_S: of unit spread.
    """

    def __init__(self, seed: int, correlation: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        cond = torch.randn(LENGTH, CODES ** (LENGTH - 1), WIDTH, generator=generator)
        other = torch.randn(cond.shape, generator=generator)
        uncond = correlation * cond + (1 - correlation**2) ** 0.5 * other
        rows = [(PICTURES_SL[:, :place] * CODES ** torch.arange(place)).sum(1) for place in range(LENGTH)]
        self.cond_SLD, self.uncond_SLD = (
            torch.stack([features[place, row] for place, row in enumerate(rows)], dim=1) for features in (cond, uncond)
        )
        self.head_VD = torch.randn(CODES, WIDTH, generator=generator).mul_(WIDTH**-0.5).requires_grad_()
        self.reward_S = torch.randn(len(PICTURES_SL), generator=generator)

    def logp(self, scale: float) -> torch.Tensor:
        """Token log-probs of all pictures, [S, L]."""
        logits_SLV = policy_logits(self.cond_SLD, self.uncond_SLD, self.head_VD, Sampling(guidance_scale=scale))
        return logits_SLV.log_softmax(-1).gather(-1, PICTURES_SL[..., None])[..., 0]

    def truth(self, scale: float) -> torch.Tensor:
        """Gradient of the expected reward of what is drawn at ``scale``."""
        return self._gradient((self.logp(scale).sum(1).exp() * self.reward_S).sum())

    def estimate(self, scale: float, optimised: float) -> torch.Tensor:
        """Expected gradient of -loss over pictures drawn at ``scale``, on log-probs at scale ``optimised``."""
        p_S = self.logp(scale).sum(1).exp().detach()
        advantages_S = (self.reward_S - (p_S * self.reward_S).sum()) * p_S * len(p_S)  # the loss takes a plain mean
        logp_SL = self.logp(optimised)
        return self._gradient(-grpo_loss(logp_SL, logp_SL.detach(), None, advantages_S, GrpoAlgorithm(beta=0.0)).loss)

    def _gradient(self, value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, self.head_VD)[0].flatten()


def cosines(scale: float, correlation: float, seeds: int) -> tuple[list[float], list[float]]:
    """Cosine to the truth of the guided and of the conditional estimate, seed by seed."""
    guided, conditional = [], []
    for seed in range(seeds):
        toy = Toy(seed, correlation)
        truth = toy.truth(scale)
        guided.append(F.cosine_similarity(truth, toy.estimate(scale, scale), dim=0).item())
        conditional.append(F.cosine_similarity(truth, toy.estimate(scale, 1.0), dim=0).item())
    return guided, conditional


def table(seeds: int) -> str:
    """One row for each guidance scale: mean [lowest, highest] over the seeds."""
    head = ["guidance", "guided (ours)", *(f"conditional, correlation {value:g}" for value in CORRELATIONS)]
    lines = [head, ["---"] * len(head)]
    for scale in SCALES:
        found = [cosines(scale, correlation, seeds) for correlation in CORRELATIONS]
        every = [value for guided, _ in found for value in guided]
        lines.append([f"{scale:g}", _range(every), *(_range(conditional) for _, conditional in found)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(seeds: int) -> str:
    """The table, and what it says."""
    return f"""# Bias of the conditional surrogate under guidance

Cosine between the true gradient of the expected reward of the guided policy and what a trainer follows: mean and range
over {seeds} random policies and rewards, by exact enumeration of all {CODES}^{LENGTH} pictures. *Guided*: the log-probs
of the distribution that is sampled, `guidance.logprob: guided`. *Conditional*: those without guidance, on the same
pictures, as trainers use that leave guidance out of the update (`guidance.logprob: conditional`). The correlation is
that of the features with and without the prompt.

{table(seeds)}

Made by `{COMMAND} --seeds {seeds} --out benchmarks/GUIDANCE_BIAS.md`. The policies are random, so the
sizes are no forecast for a trained one; that the guided estimate is exact and the conditional one is not holds for any.
"""


def _range(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the page here; default: print the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.out is None:
        print(table(options.seeds))
    else:
        options.out.write_text(page(options.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
