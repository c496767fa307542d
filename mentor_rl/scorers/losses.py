"""The losses of the scorers, as small pure functions.

Shapes: N pictures, E embedding width, P proxies (one per training subject).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def same_label_contrast(embedding_NE: torch.Tensor, label_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """Supervised contrastive loss (arXiv 2004.11362, L_out): every picture against all others of the batch.

    Embeddings are unit vectors; every label has to occur at least twice.
    """
    others_NN = ~torch.eye(len(label_N), dtype=torch.bool)
    positive_NN = (label_N[:, None] == label_N[None, :]) & others_NN
    logits_NN = (embedding_NE @ embedding_NE.T / temperature).masked_fill(~others_NN, float("-inf"))
    logp_NN = logits_NN.log_softmax(dim=1).masked_fill(~positive_NN, 0.0)
    return -(logp_NN.sum(dim=1) / positive_NN.sum(dim=1)).mean()


def proxy_loss(
    embedding_NE: torch.Tensor, proxies_PE: torch.Tensor, label_N: torch.Tensor, scale: float
) -> torch.Tensor:
    """Cross-entropy over cosines to one learned proxy per training subject; the proxies are thrown away afterwards."""
    return F.cross_entropy(scale * embedding_NE @ F.normalize(proxies_PE, dim=1).T, label_N)


def pair_contrast(
    image_NE: torch.Tensor, text_NE: torch.Tensor, matches_NN: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric loss where a caption may fit several pictures.

    ``matches_NN[i, j]``: caption j is true of picture i (the diagonal is). Each side's target is uniform over its
    matches, so that a caption which names only the subject does not push that subject's other drawings away.
    """
    logits_NN = scale * image_NE @ text_NE.T
    wanted_NN = matches_NN.float()
    by_image = F.cross_entropy(logits_NN, wanted_NN / wanted_NN.sum(dim=1, keepdim=True))
    by_text = F.cross_entropy(logits_NN.T, wanted_NN.T / wanted_NN.T.sum(dim=1, keepdim=True))
    return (by_image + by_text) / 2


def retrieval_top1(embedding_NE: torch.Tensor, subject_N: torch.Tensor, style_N: torch.Tensor) -> float:
    """Share of pictures whose nearest picture of another style shows the same subject (those that have one)."""
    cosine_NN = embedding_NE @ embedding_NE.T
    other_style = style_N[:, None] != style_N[None, :]
    nearest = cosine_NN.masked_fill(~other_style, -2.0).argmax(dim=1)
    able = ((subject_N[:, None] == subject_N[None, :]) & other_style).any(dim=1)
    return float((subject_N[nearest] == subject_N)[able].float().mean())


def pair_cosines(
    embedding_NE: torch.Tensor, subject_N: torch.Tensor, style_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of (one subject in two styles) and of (two subjects), over all such pairs."""
    cosine_NN = embedding_NE @ embedding_NE.T
    same_NN = subject_N[:, None] == subject_N[None, :]
    other_style = style_N[:, None] != style_N[None, :]
    return cosine_NN[same_NN & other_style], cosine_NN[~same_NN]


def ranking(true: torch.Tensor, false: torch.Tensor) -> float:
    """Area under the ROC curve: how often a true pair has the higher cosine than a false one."""
    order = torch.cat([true, false]).argsort().argsort().double() + 1
    rank_sum = order[: len(true)].sum()
    return float((rank_sum - len(true) * (len(true) + 1) / 2) / (len(true) * len(false)))
