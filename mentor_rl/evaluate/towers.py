"""Whether a checkpoint has the size of the tower that published numbers were measured with.

A tower given as a local folder or file cannot prove its origin; a wrong size can be seen. Checksums of what was used
stand in every result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Size:
    """Hub id of the published tower, its width and its patch."""

    hub: str
    width: int
    patch: int


PUBLISHED = {
    "CLIP-I": Size("openai/clip-vit-base-patch32", 768, 32),
    "CLIP-T": Size("openai/clip-vit-base-patch32", 768, 32),
    "DINOv1": Size("facebook/dino-vits8", 384, 8),
    "DINOv1 S/16": Size("facebook/dino-vits16", 384, 16),
    "DINOv2": Size("facebook/dinov2-small", 384, 14),
}


def is_published(metric: str, checkpoint: str) -> bool:
    """The published hub id, or local weights of its width and patch."""
    size = PUBLISHED[metric]
    path = Path(checkpoint).expanduser()
    if checkpoint == size.hub:
        return True
    if path.is_file():
        from mentor_rewards.pretrained import read_tensors

        kernel = read_tensors(path).get("patch_embed.proj.weight")
        return kernel is not None and (kernel.shape[0], kernel.shape[-1]) == (size.width, size.patch)
    if (path / "config.json").is_file():
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(path, local_files_only=True)
        vision = getattr(config, "vision_config", config)
        return (vision.hidden_size, vision.patch_size) == (size.width, size.patch)
    return False
