"""Training of the VQ tokenizer on the emoji world.

Shapes: B pictures of a batch, H rows, W columns, L codes of a picture, V codebook size, K codebook width.

Departures from LlamaGen's tokenizer training (arXiv 2406.06525, section 3.1):

- The codebook follows its members by moving averages (van den Oord et al., arXiv 1711.00937, appendix A.1) instead of
  by a gradient, and a code that nobody uses is moved onto a badly served latent of the batch.
- No discriminator and no perceptual network: L1, L2 and the L1 between picture gradients at two scales.
- The weights that are measured and saved are a moving average of the trained ones.
- What is saved is rounded to float16, and the final metrics are those of the rounded weights.

Learning rate: linear warm-up, then cosine down to ``final_lr``. A step depends only on (seed, step) and on the state
before it, so a resumed run is bit-equal to one that was never stopped.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from mentor_base.errors import UserError
from mentor_base.images import contact_sheet, to_images
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.progress import ProgressBar
from mentor_base.runlog import RunFolder
from mentor_base.settings import Checkpoints, EmojiData, Optimisation, TokenizerLosses, TokenizerModel
from mentor_base.tokenizer_data import TrainingPictures, held_out
from mentor_base.vq import VQConfig, VQModel, VQOutput

WORLD_SIDE = 64  # pixels: the emoji world's pictures
VALIDATION_PICTURES = 256
TRAIN_PICTURES = 2000  # in which every code should occur
GRID_PICTURES = 16
LOG_EVERY = 20
CODE_DECAY = 0.98  # of the codebook's averages, per step
DEAD_SHARE = 0.02  # a code is dead when it is used less than this share of the mean
REVIVED_SHARE = 0.1  # usage that a new or revived code starts with, as a share of the mean
WEIGHT_DECAY_RATE = 0.995  # of the averaged weights, per step


class CodebookAverage:
    """Keeps the codebook at the moving average of the latents that chose each code."""

    def __init__(self, model: VQModel) -> None:
        self.codes = model.codes.weight.requires_grad_(False)
        self.counts_V = torch.zeros(len(self.codes), device=self.codes.device)
        self.sums_VK = self.codes.detach().clone()
        self.revived = 0

    def start(self, latents_NLK: torch.Tensor, generator: torch.Generator) -> None:
        """Begin on latents of real pictures: a random codebook would lie far from most of them."""
        flat = latents_NLK.detach().flatten(0, 1)
        usage = REVIVED_SHARE * len(flat) / len(self.codes)
        picks = torch.randint(len(flat), (len(self.codes),), generator=generator)
        self.sums_VK = flat[picks.to(flat.device)] * usage
        self.counts_V.fill_(usage)
        self.codes.copy_(F.normalize(self.sums_VK, dim=-1))

    @torch.no_grad()
    def update(self, latents_NLK: torch.Tensor, tokens_NL: torch.Tensor, generator: torch.Generator) -> None:
        """Move each code towards its members of this batch, then revive the dead ones."""
        flat, chosen = latents_NLK.detach().flatten(0, 1), tokens_NL.flatten()
        counts = torch.bincount(chosen, minlength=len(self.codes)).float()
        sums = torch.zeros_like(self.sums_VK).index_add_(0, chosen, flat)
        self.counts_V.mul_(CODE_DECAY).add_(counts, alpha=1 - CODE_DECAY)
        self.sums_VK.mul_(CODE_DECAY).add_(sums, alpha=1 - CODE_DECAY)
        self._revive(flat, (flat - F.normalize(self.codes[chosen], dim=-1)).square().sum(-1), generator)
        self.codes.copy_(F.normalize(self.sums_VK, dim=-1))

    def _revive(self, flat_NK: torch.Tensor, error_N: torch.Tensor, generator: torch.Generator) -> None:
        """Put dead codes onto latents of this batch, those far from their code first."""
        dead = self.counts_V < DEAD_SHARE * self.counts_V.mean()
        self.revived = int(dead.sum())
        if not self.revived:
            return
        odds = (error_N + 1e-8).cpu()
        picks = torch.multinomial(odds, self.revived, replacement=self.revived > len(odds), generator=generator)
        usage = REVIVED_SHARE * self.counts_V.mean()
        self.counts_V[dead] = usage
        self.sums_VK[dead] = flat_NK[picks.to(flat_NK.device)] * usage

    def state(self) -> dict[str, torch.Tensor]:
        return {"counts": self.counts_V, "sums": self.sums_VK}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.counts_V, self.sums_VK = state["counts"], state["sums"]


class TokenizerTraining:
    """The state of a run (model, codebook averages, averaged weights, optimizer, step) and one step of it."""

    def __init__(
        self,
        model: TokenizerModel,
        losses: TokenizerLosses,
        optimisation: Optimisation,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)  # the initial weights; later draws take generators of (seed, step)
        config = VQConfig(**model.model_dump())
        self.model = VQModel(config).to(device, memory_format=torch.channels_last).train()
        self.averaged = VQModel(config).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.averaged.load_state_dict(self.model.state_dict())
        self.codebook = CodebookAverage(self.model)
        self.losses, self.optimisation, self.seed, self.device = losses, optimisation, seed, device
        self.optimizer = adamw(self.model, optimisation)
        self.step = 0
        self.cpu_seconds = 0.0

    def advance(self, pixels_B3HW: torch.Tensor) -> dict[str, float]:
        """One optimizer step; returns its metrics.

        Raises:
            UserError: loss or gradient are no numbers; the weights are those of the step before.
        """
        began = time.process_time()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step + 500_000_009)
        pixels = pixels_B3HW.to(self.device).contiguous(memory_format=torch.channels_last)
        if self.step == 0:
            with torch.no_grad():
                self.codebook.start(self.model.latents(pixels), generator)
        lr = learning_rate(self.step, self.optimisation)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.optimisation.precision == "bf16"):
            output: VQOutput = self.model(pixels)
        loss, parts = tokenizer_loss(output, pixels, self.losses)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.optimisation.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], limit).item()
        for name, value in (("loss", parts["loss"]), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise UserError(f"step {self.step + 1}: expected a finite {name}, found {value}; lower optimisation.lr")
        self.optimizer.step()
        assert output.latents is not None
        assert output.tokens_NL is not None
        self.codebook.update(output.latents, output.tokens_NL, generator)
        self.step += 1
        self._average()
        self.cpu_seconds += time.process_time() - began
        return {**parts, "lr": lr, "grad_norm": norm, "revived": float(self.codebook.revived)}

    @torch.no_grad()
    def _average(self) -> None:
        """The averaged weights follow; early on with a short memory. The codebook is an average already."""
        decay = min(WEIGHT_DECAY_RATE, self.step / (self.step + 10))
        pairs = [(a, p) for a, p in zip(self.averaged.parameters(), self.model.parameters(), strict=True)]
        torch._foreach_lerp_([a for a, _ in pairs], [p for _, p in pairs], 1 - decay)
        self.averaged.codes.weight.copy_(self.model.codes.weight)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "cpu_seconds": self.cpu_seconds,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "codebook": self.codebook.state(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.codebook.load(state["codebook"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.cpu_seconds = state["step"], state["cpu_seconds"]


def adamw(model: VQModel, optimisation: Optimisation) -> torch.optim.AdamW:
    """AdamW on all but the codebook; decay on convolution kernels only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optimisation.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optimisation.lr, betas=optimisation.betas, fused=True)


def learning_rate(step: int, optimisation: Optimisation) -> float:
    """Linear warm-up over ``warmup * steps`` steps, then cosine from lr to ``final_lr * lr``."""
    warmup = max(1, round(optimisation.warmup * optimisation.steps))
    if step < warmup:
        return optimisation.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, optimisation.steps - warmup)
    floor = optimisation.final_lr
    return optimisation.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def tokenizer_loss(
    output: VQOutput, pixels_B3HW: torch.Tensor, weights: TokenizerLosses
) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted sum and its parts; differences are taken in units of [0, 1], as is usual for pictures."""
    assert output.reconstruction is not None
    assert output.commitment is not None
    made, wanted = output.reconstruction.float() / 2, pixels_B3HW / 2
    parts = {
        "l1": (made - wanted).abs().mean(),
        "l2": (made - wanted).square().mean(),
        "gradient": gradient_loss(made, wanted),
        "commitment": output.commitment,
    }
    loss = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
    return loss, {"loss": loss.item(), **{name: part.item() for name, part in parts.items()}}


def gradient_loss(made_B3HW: torch.Tensor, wanted_B3HW: torch.Tensor) -> torch.Tensor:
    """L1 between differences of neighbouring pixels, at full and half resolution: keeps edges sharp."""
    error = made_B3HW - wanted_B3HW
    half = F.avg_pool2d(error, 2)
    return torch.stack([e.diff(dim=side).abs().mean() for e in (error, half) for side in (2, 3)]).sum()


def psnr(made_B3HW: torch.Tensor, wanted_B3HW: torch.Tensor) -> torch.Tensor:
    """psnr_B: dB of each picture, from pixels in [-1, 1], clamped, on the scale of 8-bit white."""
    error_B = ((made_B3HW.clamp(-1, 1) - wanted_B3HW) / 2).square().flatten(1).mean(1)
    return -10 * torch.log10(error_B.clamp(min=1e-10))


@torch.no_grad()
def measure(model: VQModel, pixels_S3HW: torch.Tensor, batch: int = 64) -> tuple[float, torch.Tensor]:
    """Mean over pictures of PSNR after encode and decode, and the usage count of every code (counts_V)."""
    device = model.codes.weight.device
    scores, counts = [], torch.zeros(model.config.codebook_size, dtype=torch.long)
    for pixels in pixels_S3HW.split(batch):
        tokens_NL = model.encode(pixels.to(device))
        scores.append(psnr(model.decode(tokens_NL).float(), pixels.to(device)))
        counts += torch.bincount(tokens_NL.flatten().cpu(), minlength=len(counts))
    return torch.cat(scores).mean().item(), counts


def save_tokenizer(model: VQModel, folder: Path) -> None:
    """Write a tokenizer in float16 that loads as float32."""
    rounded = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=rounded)


def train_tokenizer(
    *,
    model: TokenizerModel,
    losses: TokenizerLosses,
    data: EmojiData,
    optimisation: Optimisation,
    checkpoints: Checkpoints,
    validate_every: int,
    seed: int,
    run: RunFolder,
) -> None:
    """Train a tokenizer into ``run.final``; takes up the newest state in ``run.state`` if there is one.

    Raises:
        UserError: settings that do not fit the emoji world, or a loss that is no number.
        OSError: no space for a state; those before it stay.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    _check(model, optimisation)
    if run.finished:
        return
    if optimisation.threads is not None:
        torch.set_num_threads(optimisation.threads)
    training = TokenizerTraining(model, losses, optimisation, seed)
    _resume(training, run)
    pictures = TrainingPictures(data, seed)
    with InterruptGuard() as guard, ProgressBar("tokenizer", optimisation.steps, done=training.step) as bar:
        while training.step < optimisation.steps:
            metrics = training.advance(pictures.batch(training.step, optimisation.batch))
            if training.step % LOG_EVERY == 0:
                run.log(training.step, **metrics)
            if training.step % validate_every == 0:
                scores = validate(training.averaged, data, run, training.step)
                run.log(training.step, cpu_seconds=round(training.cpu_seconds, 1), **scores)
            if guard.requested or training.step % checkpoints.every == 0:
                save_state(training.state(), run.state, training.step, checkpoints.keep)
            if guard.requested:
                raise Interrupted(f"{run.path}: stopped at step {training.step}; the same command goes on from there")
            bar.advance(note=f"loss {metrics['loss']:.4f}")
    _finish(training, data, run)


def validate(model: VQModel, data: EmojiData, run: RunFolder, step: int) -> dict[str, float]:
    """PSNR on pictures of the validation split over white and over colours; draws a grid."""
    result: dict[str, float] = {}
    for grounds in ("white", "coloured"):
        pixels = held_out("val", grounds, VALIDATION_PICTURES, data)
        score, counts = measure(model, pixels)
        result |= {f"val_psnr_{grounds}": score, f"val_codes_{grounds}": float((counts > 0).sum())}
        draw_grid(model, pixels, run.sample_path(step, f"val_{grounds}"))
    return result


@torch.no_grad()
def draw_grid(model: VQModel, pixels_S3HW: torch.Tensor, path: Path, columns: int = 8) -> None:
    """Originals above reconstructions, evenly taken."""
    count = min(GRID_PICTURES, len(pixels_S3HW))
    pick = torch.arange(count) * len(pixels_S3HW) // count
    chosen = pixels_S3HW[pick].to(model.codes.weight.device)
    made = model.decode(model.encode(chosen))
    rows = []
    for start in range(0, len(chosen), columns):
        rows += [to_images(chosen[start : start + columns]), to_images(made[start : start + columns])]
    contact_sheet(rows).save(path)


def save_state(state: dict[str, Any], folder: Path, step: int, keep: int) -> None:
    """Write a state so that a kill leaves the old ones whole; forget all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / f"step_{step:08d}.pt", folder / ".partial"
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # what could not be written must not fill the disk that it did not fit on
        partial.unlink(missing_ok=True)
        raise
    for old in _states(folder)[:-keep]:
        old.unlink()


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"))


def _resume(training: TokenizerTraining, run: RunFolder) -> None:
    states = _states(run.state)
    if states:
        training.load(torch.load(states[-1], map_location=training.device, weights_only=True))
    run.rewind(training.step)


def _finish(training: TokenizerTraining, data: EmojiData, run: RunFolder) -> None:
    """Round, measure on the unseen subjects and on the training sprites, save."""
    model = training.averaged
    model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    result: dict[str, float] = {}
    for grounds in ("white", "coloured"):
        pixels = held_out("unseen_subjects", grounds, None, data)
        score, counts = measure(model, pixels)
        result |= {f"unseen_psnr_{grounds}": score, f"unseen_codes_{grounds}": float((counts > 0).sum())}
        draw_grid(model, pixels, run.sample_path(training.step, f"unseen_{grounds}"))
    used = torch.zeros(model.config.codebook_size, dtype=torch.bool)
    for grounds in ("white", "coloured"):
        used |= measure(model, held_out("train", grounds, TRAIN_PICTURES, data))[1] > 0
    result |= {"train_codes": float(used.sum()), "parameters": float(model.num_parameters())}
    result["cpu_seconds"] = round(training.cpu_seconds, 1)
    run.log(training.step, **result)
    run.write_manifest(result=result)
    with run.writing_final() as folder:
        save_tokenizer(model, folder)


def _check(model: TokenizerModel, optimisation: Optimisation) -> None:
    if model.image_size != WORLD_SIDE:
        raise UserError(f"model.image_size: expected {WORLD_SIDE}, the emoji world's side, found {model.image_size}")
    if optimisation.micro_batch not in (None, optimisation.batch):
        raise UserError(
            "optimisation.micro_batch: the tokenizer trains on whole batches: "
            f"expected {optimisation.batch} or nothing, found {optimisation.micro_batch}"
        )
    if optimisation.gradient_checkpointing:
        raise UserError("optimisation.gradient_checkpointing: expected false (a tokenizer is small), found true")
