"""What each scorer learns: its network, its loss for one step, its validation, its files.

    style      ConvClassifier over the styles; judged on subjects that it never saw
    subject    ConvClassifier over the train subjects; a reward for train prompts, it abstains on unseen subjects
    clip       CLIPModel on (picture, caption), pictures of one subject pulled together across styles
    evaluator  EmojiBench's judge: style, ground colour and subject embedding (mentor_rl/evaluate/evaluator.py)

Shapes: N pictures, E embedding width, S styles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from mentor_rewards.classifier import ClassifierConfig, ConvClassifier
from torch import nn
from transformers import CLIPModel

from mentor_base.data.emoji import EmojiWorld
from mentor_base.data.shapes import background_words
from mentor_base.errors import UserError, nearest
from mentor_base.settings import EmojiData
from mentor_rl.evaluate.evaluator import Calibration, Evaluator, EvaluatorNet, fit_temperature
from mentor_rl.scorers.captions import PREPROCESSING, Caption, caption_tokenizer, clip_config, draw_caption
from mentor_rl.scorers.losses import (
    pair_contrast,
    pair_cosines,
    proxy_loss,
    ranking,
    retrieval_top1,
    same_label_contrast,
)
from mentor_rl.scorers.pictures import (
    COLOUR_NAMES,
    PLAIN,
    SOFT,
    SpriteBank,
    draw_grounds,
)
from mentor_rl.scorers.views import Looks, Pictures, View


class ScorerTask(Protocol):
    """One scorer in training."""

    about: str
    module: nn.Module

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of this step's batch, and parts of it worth logging."""

    def validate(self) -> dict[str, float]:
        """Metrics on the val split and on unseen subjects."""

    def shipped(self) -> nn.Module:
        """The part of ``module`` that is saved."""

    def save(self, folder: Path) -> dict[str, float]:
        """Write the scorer's files; returns the metrics of what was written."""


class EvaluatorTask:
    """Style and colour cross-entropy, supervised contrast over subjects across styles, and subject proxies."""

    about = (
        "EmojiBench's judge of concept preservation and prompt following, trained apart from every reward. "
        "It is a small network that knows nine drawing styles of emoji; its scores compare runs in this world only."
    )
    views, temperature, proxy_scale = 3, 0.1, 16.0

    def __init__(self, data: EmojiData, batch: int, looks: Looks, seed: int) -> None:
        own_crops = replace(looks.augmentation, scale=(0.75, 1.2), shift=0.08, erased=0.15)
        self.pictures = Pictures(data, replace(looks, augmentation=own_crops), seed)
        self.subjects_per_step = batch // self.views
        self.size: dict[str, Any] = {"width": 48, "depth": (1, 4), "embedding": 96}
        self.net = EvaluatorNet(styles=len(self.pictures.styles), colours=len(COLOUR_NAMES), **self.size)
        self.proxies = nn.Parameter(F.normalize(torch.randn(len(self.pictures.train.subjects), 96), dim=1))
        self.module: nn.Module = nn.ParameterDict({"proxies": self.proxies})
        self.module.add_module("net", self.net)

    def shipped(self) -> nn.Module:
        return self.net

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng, bank = self.pictures.rng(step), self.pictures.train
        rows = bank.draw_views(rng, self.subjects_per_step, self.views)
        grounds = draw_grounds(rng, len(rows))
        out = self.net(self.pictures.picture(rows, grounds, rng))
        subject = torch.from_numpy(bank.subject_M[rows])
        parts = {
            "style_loss": F.cross_entropy(out.style_NS, torch.from_numpy(bank.style_M[rows]), label_smoothing=0.05),
            "colour_loss": F.cross_entropy(out.colour_NC, torch.from_numpy(grounds), label_smoothing=0.02),
            "contrast": same_label_contrast(out.embedding_NE, subject, self.temperature),
            "proxy": proxy_loss(out.embedding_NE, self.proxies, subject, self.proxy_scale),
        }
        total = parts["style_loss"] + 0.3 * parts["colour_loss"] + parts["contrast"] + 0.5 * parts["proxy"]
        return total, {name: value.item() for name, value in parts.items()}

    def validate(self) -> dict[str, float]:
        return self._judge(self._evaluator())

    def save(self, folder: Path) -> dict[str, float]:
        self._evaluator().save(folder)
        saved = Evaluator.load(folder)
        saved.calibration = self._calibrate(saved)
        saved.save(folder)
        saved = Evaluator.load(folder)
        return {**self._judge(saved), **{f"calibration/{k}": v for k, v in vars(saved.calibration).items()}}

    def _evaluator(self) -> Evaluator:
        return Evaluator(self.net, self.pictures.styles, COLOUR_NAMES, size=self.size)

    def _calibrate(self, judge: Evaluator) -> Calibration:
        """Means of true and unrelated pairs of sprites, temperatures on pictures as a policy writes them; val split."""
        views = self.pictures.views
        view = views["val"]
        sprites = torch.from_numpy(judge.read_pixels(view.pixels_N3HW).embedding_NE)
        same, unrelated = pair_cosines(sprites, view.subject_N, view.style_N)
        view = views.get("val_tokenized", view)
        reading = judge.read_pixels(view.pixels_N3HW)
        return Calibration(
            unrelated=float(unrelated.mean()),
            same=float(same.mean()),
            style_temperature=fit_temperature(np.log(reading.style_NS + 1e-12), view.style_N.numpy()),
            colour_temperature=fit_temperature(np.log(reading.colour_NC + 1e-12), view.colour_N),
        )

    def _judge(self, judge: Evaluator) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, view in self.pictures.views.items():
            reading = judge.read_pixels(view.pixels_N3HW)
            embedding = torch.from_numpy(reading.embedding_NE)
            same, unrelated = pair_cosines(embedding, view.subject_N, view.style_N)
            metrics |= {
                f"{name}/style_top1": float((reading.style_NS.argmax(1) == view.style_N.numpy()).mean()),
                f"{name}/colour_top1": float((reading.colour_NC.argmax(1) == view.colour_N).mean()),
                f"{name}/subject_retrieval": retrieval_top1(embedding, view.subject_N, view.style_N),
                f"{name}/subject_auc": ranking(same, unrelated),
                f"{name}/cosine_same": float(same.mean()),
                f"{name}/cosine_unrelated": float(unrelated.mean()),
            }
        return {key: round(value, 5) for key, value in metrics.items()}


class ClassifierTask:
    """Cross-entropy over styles, or over the train subjects; a mentor_rewards ConvClassifier.

    Args:
        of: "style" or "subject".
        embedding: width of the classifier's embedding.
        views: what validation looks at.
    """

    label_smoothing = 0.05

    def __init__(
        self, of: Literal["style", "subject"], about: str, pictures: Pictures, views: dict[str, View], batch: int
    ) -> None:
        bank = pictures.train
        labels, self.labels_M, embedding = {
            "style": (bank.styles, bank.style_M, 96),
            "subject": (bank.subjects, bank.subject_M, 192),
        }[of]
        self.of, self.about, self.pictures, self.views, self.batch = of, about, pictures, views, batch
        config = ClassifierConfig(labels, width=24, multipliers=(1, 2, 4), embedding=embedding, normalisation="batch")
        self.net = ConvClassifier(config)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module: nn.Module = self.net

    def shipped(self) -> nn.Module:
        return self.net

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng, bank = self.pictures.rng(step), self.pictures.train
        rows = bank.draw_rows(rng, self.batch)
        pixels = self.pictures.picture(rows, draw_grounds(rng, len(rows)), rng)
        logits = self.net(pixels.contiguous(memory_format=torch.channels_last))
        labels = torch.from_numpy(self.labels_M[rows])
        top1 = float((logits.argmax(dim=1) == labels).float().mean())
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), {"top1": top1}

    def validate(self) -> dict[str, float]:
        return self._judge(self.net)

    def save(self, folder: Path) -> dict[str, float]:
        self.net.save(folder, dtype="float16")
        return self._judge(ConvClassifier.load(folder))

    @torch.no_grad()
    def _judge(self, net: ConvClassifier) -> dict[str, float]:
        """Top-1 accuracy and mean probability of the true label."""
        metrics = {}
        for name, view in self.views.items():
            logits = torch.cat([net(batch) for batch in view.batches()])
            labels = view.style_N if self.of == "style" else view.subject_N
            chance = logits.softmax(dim=1).gather(1, labels[:, None])
            metrics[f"{name}/top1"] = round(float((logits.argmax(dim=1) == labels).float().mean()), 5)
            metrics[f"{name}/probability"] = round(float(chance.mean()), 5)
        return metrics


def style_task(data: EmojiData, batch: int, looks: Looks, seed: int) -> ClassifierTask:
    """Which of the styles; judged on subjects that it never saw."""
    about = "Tells the drawing style of a picture, whatever it shows. Reward `style`: probability of the asked style."
    pictures = Pictures(data, looks, seed)
    return ClassifierTask("style", about, pictures, pictures.views, batch)


def subject_task(data: EmojiData, batch: int, looks: Looks, seed: int) -> ClassifierTask:
    """Which of the train subjects; judged on held-out drawings (unseen pairs) of those subjects."""
    about = (
        "Tells which of the training subjects a picture shows, in any style. Reward `subject`: probability of the "
        "prompt's subject; it abstains on subjects that training never showed."
    )
    pictures = Pictures(data, looks, seed)
    bank = pictures.bank("unseen_pairs", subjects=pictures.train.subjects)
    views = {"unseen_pairs": View(bank, PLAIN), "unseen_pairs_soft": View(bank, SOFT)}
    return ClassifierTask("subject", about, pictures, views, batch)


class ClipTask:
    """CLIP's symmetric loss, and pictures of one subject pulled together across styles (so that the image tower's
    cosine means "the same thing", not "the same drawing")."""

    about = (
        "A small CLIP of the emoji world: captions of subject, style and ground. Rewards `clip_image` (is it the "
        "reference's subject?) and `clip_text`. It knows this world's words only."
    )
    views, temperature = 2, 0.1

    def __init__(self, data: EmojiData, batch: int, looks: Looks, seed: int) -> None:
        self.pictures = Pictures(data, looks, seed)
        self.subjects_per_step = batch // self.views
        world = EmojiWorld(data)
        self.tokenizer = caption_tokenizer(world.corpus(), vocabulary=1024)
        self.net = CLIPModel(clip_config(self.tokenizer))
        self.module: nn.Module = self.net
        self.names = {key: (subject.name, subject.keywords) for key, subject in self.pictures.atlas.subjects.items()}

    def shipped(self) -> nn.Module:
        return self.net

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng, bank = self.pictures.rng(step), self.pictures.train
        rows = bank.draw_views(rng, self.subjects_per_step, self.views)
        grounds = draw_grounds(rng, len(rows))
        said = [self._caption(rng, bank, row, ground) for row, ground in zip(rows, grounds, strict=True)]
        image = self._image_embedding(self.pictures.picture(rows, grounds, rng))
        text = self._text_embedding([caption.text for caption in said])
        facts = [(bank.subject_M[row], bank.style_M[row], ground) for row, ground in zip(rows, grounds, strict=True)]
        matches = torch.tensor([[caption.fits(*fact) for caption in said] for fact in facts])
        parts = {
            "clip": pair_contrast(image, text, matches, self.net.logit_scale.exp().clamp(max=50.0)),
            "contrast": same_label_contrast(image, torch.from_numpy(bank.subject_M[rows]), self.temperature),
        }
        return parts["clip"] + parts["contrast"], {name: value.item() for name, value in parts.items()}

    def validate(self) -> dict[str, float]:
        return self._judge()

    def save(self, folder: Path) -> dict[str, float]:
        self.net.half().save_pretrained(folder)
        self.net.float()
        self.tokenizer.save_pretrained(folder)
        PREPROCESSING.save(folder)
        return self._judge()

    def _caption(self, rng: np.random.Generator, bank: SpriteBank, row: int, ground: int) -> Caption:
        subject, style = int(bank.subject_M[row]), int(bank.style_M[row])
        name, keywords = self.names[bank.subjects[subject]]
        style_words = self.pictures.atlas.style_names[bank.styles[style]]
        return draw_caption(
            Random(int(rng.integers(2**62))), (subject, style, int(ground)), name, style_words, keywords
        )

    def _image_embedding(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.net.get_image_features(pixel_values=pixels_N3HW).pooler_output, dim=1)

    def _text_embedding(self, texts: list[str]) -> torch.Tensor:
        length = self.net.config.text_config.max_position_embeddings
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        features = self.net.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return F.normalize(features.pooler_output, dim=1)

    @torch.no_grad()
    def _judge(self) -> dict[str, float]:
        """Retrieval across styles by pictures; zero-shot style and ground by text."""
        metrics: dict[str, float] = {}
        styles = [f"a thing in {self.pictures.atlas.style_names[style]} style" for style in self.pictures.styles]
        grounds = [f"a thing{background_words(name)}" for name in COLOUR_NAMES]
        tables = self._text_embedding(styles), self._text_embedding(grounds)
        for name, view in self.pictures.views.items():
            image = torch.cat([self._image_embedding(batch) for batch in view.batches()])
            same, unrelated = pair_cosines(image, view.subject_N, view.style_N)
            style, ground = ((image @ table.T).argmax(dim=1) for table in tables)
            metrics |= {
                f"{name}/subject_retrieval": retrieval_top1(image, view.subject_N, view.style_N),
                f"{name}/subject_auc": ranking(same, unrelated),
                f"{name}/cosine_same": float(same.mean()),
                f"{name}/cosine_unrelated": float(unrelated.mean()),
                f"{name}/style_by_text": float((style == view.style_N).float().mean()),
                f"{name}/ground_by_text": float((ground == torch.from_numpy(view.colour_N)).float().mean()),
            }
        return {key: round(value, 5) for key, value in metrics.items()}


TASKS: dict[str, Callable[[EmojiData, int, Looks, int], ScorerTask]] = {
    "evaluator": EvaluatorTask,
    "style": style_task,
    "clip": ClipTask,
    "subject": subject_task,
}


def build_task(scorer: str, data: EmojiData, batch: int, looks: Looks, seed: int) -> ScorerTask:
    """The task of a recipe's ``scorer``."""
    if scorer not in TASKS:
        raise UserError(f"scorer: unknown scorer '{scorer}'; {nearest(scorer, TASKS)}")
    return TASKS[scorer](data, batch, looks, seed)
