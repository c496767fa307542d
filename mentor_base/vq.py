"""The VQ tokenizer: pictures to codes and back, in the VQ-16 design of LlamaGen (arXiv 2406.06525, section 3.1).

Shapes: N pictures, H rows, W columns, C channels, L codes of a picture (row-major), V codebook size, K codebook width,
F width of a trunk feature. Pixels are floats in [-1, 1].

At the defaults of ``VQConfig`` this is VQ-16 tensor for tensor; interchange/importing.py takes its checkpoint. Options
that VQ-16 does not have, for small worlds:

- ``stem_patch``: pixel-unshuffle before the first convolution and pixel-shuffle after the last. Convolutions at full
  resolution cost most of VQ-16's time and decide little on 64-pixel pictures.
- ``normalisation="none"``: no GroupNorm; the second convolution of each residual block then starts at zero.
- ``attention=False``: no self-attention.
- ``decoder_channels``, ``decoder_blocks``: a decoder of another size than the encoder.

Beyond the reference: an all-zero latent is normalised to zero instead of NaN; codes are compared in float32 whatever
the dtype of the convolutions.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from mentor_base.errors import UserError

FEATURE_SCALE = 4.0  # brings unit-length feature maps to entries of order one
LATENT_SCALE = 2.0
PIXELS_AT_A_TIME = 1 << 22  # 16 pictures of 512: VQ-16 holds about .4 GB of feature maps for each of them


class VQConfig(PreTrainedConfig):
    """Sizes of a VQ tokenizer; the defaults are VQ-16. Fields as in ``settings.TokenizerModel``."""

    model_type = "mentor_vq"

    image_size: int = 256
    channels: int = 128
    multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    residual_blocks: int = 2
    latent_channels: int = 256
    codebook_size: int = 16384
    codebook_width: int = 8
    decoder_channels: int | None = None
    decoder_blocks: int | None = None
    stem_patch: int = 1
    normalisation: str = "group"
    attention: bool = True

    @property
    def stride(self) -> int:
        """Pixels per code, along one side."""
        return int(self.stem_patch * 2 ** (len(self.multipliers) - 1))

    @property
    def grid(self) -> int:
        """Codes along one side of a picture."""
        return self.image_size // self.stride

    @property
    def tokens(self) -> int:
        """Codes of a picture."""
        return self.grid**2


@dataclass
class VQOutput(ModelOutput):
    """What a training pass gives.

    Attributes:
        reconstruction: pixels_N3HW, not clamped; gradients reach the encoder straight through the quantiser.
        tokens_NL: the codes chosen.
        latents: unit vectors [N, L, K] before quantisation.
        commitment: squared distance between latents and their (detached) codes, summed over K, mean over codes.
    """

    reconstruction: torch.Tensor | None = None
    tokens_NL: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    commitment: torch.Tensor | None = None


def at_a_time(pixels: int) -> int:
    """How many pictures of so many pixels a tokenizer works on together, lest a rollout's pictures fill a GPU."""
    return max(1, PIXELS_AT_A_TIME // pixels)


def norm_of(config: VQConfig, channels: int) -> nn.Module:
    """GroupNorm with 32 groups and eps 1e-6, or nothing."""
    if config.normalisation == "group":
        return nn.GroupNorm(32, channels, eps=1e-6)
    return nn.Identity()


class ResidualBlock(nn.Module):
    """norm, swish, 3x3, norm, swish, 3x3, plus the input (through a 1x1 where the width changes)."""

    def __init__(self, config: VQConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = norm_of(config, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = norm_of(config, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x_NCHW)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x_NCHW) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over the cells of a feature map, added to its input."""

    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__()
        self.norm = norm_of(config, channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        h = self.norm(x_NCHW)
        cells = [part(h).flatten(2).transpose(1, 2) for part in (self.query, self.key, self.value)]
        mixed_NLC = F.scaled_dot_product_attention(*cells)
        return x_NCHW + self.out(mixed_NLC.transpose(1, 2).reshape(x_NCHW.shape))


class Downsample(nn.Module):
    """Stride-2 3x3 convolution; the picture is padded on its right and lower edge only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x_NCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution (with attention after each, at the lowest), then a change of resolution."""

    def __init__(
        self, config: VQConfig, inputs: int, outputs: int, blocks: int, attention: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(config, inputs if i == 0 else outputs, outputs) for i in range(blocks)
        )
        self.attention = nn.ModuleList(AttentionBlock(config, outputs) for _ in range(blocks if attention else 0))
        self.resample = resample if resample is not None else nn.Identity()

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.blocks):
            x_NCHW = block(x_NCHW)
            if len(self.attention):
                x_NCHW = self.attention[i](x_NCHW)
        return self.resample(x_NCHW)


class Middle(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__()
        self.first = ResidualBlock(config, channels, channels)
        self.attention = AttentionBlock(config, channels) if config.attention else nn.Identity()
        self.second = ResidualBlock(config, channels, channels)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.second(self.attention(self.first(x_NCHW)))


class VQEncoder(nn.Module):
    """Pixels -> feature map before quantisation."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        last = len(widths) - 1
        self.unshuffle = nn.PixelUnshuffle(config.stem_patch)
        self.conv_in = nn.Conv2d(3 * config.stem_patch**2, config.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                config,
                inputs=widths[i - 1] if i else config.channels,
                outputs=widths[i],
                blocks=config.residual_blocks,
                attention=config.attention and i == last,
                resample=Downsample(widths[i]) if i != last else None,
            )
            for i in range(len(widths))
        )
        self.middle = Middle(config, widths[last])
        self.norm_out = norm_of(config, widths[last])
        self.conv_out = nn.Conv2d(widths[last], config.latent_channels, 3, padding=1)
        self.width = widths[last]

    def features(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        """The last feature map [N, width, H/stride, W/stride], before norm and projection."""
        h = self.conv_in(self.unshuffle(pixels_N3HW))
        for level in self.levels:
            h = level(h)
        return self.middle(h)

    def project(self, features_NCHW: torch.Tensor) -> torch.Tensor:
        """Feature map -> latent map [N, latent_channels, H/stride, W/stride]."""
        return self.conv_out(F.silu(self.norm_out(features_NCHW)))

    def forward(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        return self.project(self.features(pixels_N3HW))


class VQDecoder(nn.Module):
    """Latent map -> pixels. Level 0 is the lowest resolution."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        channels = config.decoder_channels or config.channels
        widths = [channels * m for m in reversed(config.multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = Middle(config, widths[0])
        self.levels = nn.ModuleList(
            Level(
                config,
                inputs=widths[max(i - 1, 0)],
                outputs=widths[i],
                blocks=config.decoder_blocks or config.residual_blocks + 1,
                attention=config.attention and i == 0,
                resample=Upsample(widths[i]) if i != last else None,
            )
            for i in range(len(widths))
        )
        self.norm_out = norm_of(config, widths[last])
        self.conv_out = nn.Conv2d(widths[last], 3 * config.stem_patch**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.stem_patch)

    def forward(self, latents_NCHW: torch.Tensor) -> torch.Tensor:
        h = self.middle(self.conv_in(latents_NCHW))
        for level in self.levels:
            h = level(h)
        return self.shuffle(self.conv_out(F.silu(self.norm_out(h))))


class VQModel(PreTrainedModel):
    """A VQ tokenizer. Training lives in ``tokenizer_training.py``; the policy uses it frozen."""

    config_class = VQConfig
    config: VQConfig
    base_model_prefix = "vq"
    main_input_name = "pixels"

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        _check(config)
        self.encoder = VQEncoder(config)
        self.decoder = VQDecoder(config)
        self.to_code = nn.Conv2d(config.latent_channels, config.codebook_width, 1)
        self.from_code = nn.Conv2d(config.codebook_width, config.latent_channels, 1)
        self.codes = nn.Embedding(config.codebook_size, config.codebook_width)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            # With zero biases latents of different pictures start apart; else all of them choose the same few codes.
            init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=1 / math.sqrt(self.config.codebook_width))
        elif isinstance(module, (ResidualBlock, AttentionBlock)) and self.config.normalisation == "none":
            last = module.conv2 if isinstance(module, ResidualBlock) else module.out
            init.zeros_(last.weight)
            init.zeros_(last.bias)

    @property
    def codebook(self) -> torch.Tensor:
        """codebook_VK: the table of unit vectors, float32."""
        return F.normalize(self.codes.weight.float(), dim=-1)

    @property
    def trunk_width(self) -> int:
        """F: width of ``trunk_features``."""
        return self.encoder.width + self.config.codebook_width

    def latents(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        """Unit vectors [N, L, K] in float32, before quantisation."""
        return self._unit_latents(self.encoder.features(self._checked(pixels_N3HW)))

    def nearest(self, latents_NLK: torch.Tensor) -> torch.Tensor:
        """tokens_NL: the code with the smallest distance, which between unit vectors is the largest product."""
        return (latents_NLK @ self.codebook.T).argmax(-1)

    def encode(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        """pixels in [-1, 1], sides multiples of the stride -> tokens_NL, long, row-major. Some pictures at a time."""
        pixels_N3HW = self._checked(pixels_N3HW)
        parts = pixels_N3HW.split(at_a_time(pixels_N3HW.shape[2] * pixels_N3HW.shape[3]))
        return torch.cat([self.nearest(self.latents(part)) for part in parts])

    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the function ``encode``: same digits, same codes. Weights are hashed as
        float32, those of the decoder are left out."""
        parts = {"encoder": self.encoder, "to_code": self.to_code, "codes": self.codes}
        facts = (self.config.image_size, self.config.stem_patch, self.config.normalisation, self.config.attention)
        digest = hashlib.sha256(repr(facts).encode())
        for part, module in parts.items():
            for name, value in sorted(module.state_dict().items()):
                digest.update(f"{part}.{name} {tuple(value.shape)}".encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def decode(self, tokens_NL: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """tokens_NL -> pixels_N3HW, float, not clamped; some pictures at a time.

        ``grid`` is (rows, columns) of codes; default: a square.
        """
        codebook, parts = self.codebook, tokens_NL.split(at_a_time(tokens_NL.shape[1] * self.config.stride**2))
        return torch.cat([self._decode_vectors(codebook[part], grid) for part in parts])

    def trunk_features(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        """features_NLF: the last feature map (unit length x 4) beside its latent (unit length x 2), row-major."""
        features = self.encoder.features(self._checked(pixels_N3HW))
        flat_NLC = F.normalize(features.float().flatten(2).transpose(1, 2), dim=-1)
        return torch.cat([FEATURE_SCALE * flat_NLC, LATENT_SCALE * self._unit_latents(features)], dim=-1)

    def forward(self, pixels: torch.Tensor) -> VQOutput:
        """A training pass over pixels_N3HW: quantise straight through, decode."""
        latents_NLK = self.latents(pixels)
        tokens_NL = self.nearest(latents_NLK.detach())
        chosen_NLK = self.codebook[tokens_NL].detach()
        commitment = (latents_NLK - chosen_NLK).square().sum(-1).mean()
        straight_NLK = latents_NLK + (chosen_NLK - latents_NLK).detach()
        grid = (pixels.shape[2] // self.config.stride, pixels.shape[3] // self.config.stride)
        return VQOutput(self._decode_vectors(straight_NLK, grid), tokens_NL, latents_NLK, commitment)

    def _unit_latents(self, features_NCHW: torch.Tensor) -> torch.Tensor:
        latents_NKHW = self.to_code(self.encoder.project(features_NCHW)).float()
        return F.normalize(latents_NKHW.flatten(2).transpose(1, 2), dim=-1)

    def _decode_vectors(self, vectors_NLK: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
        count, length, width = vectors_NLK.shape
        rows, columns = grid or (math.isqrt(length),) * 2
        if rows * columns != length:
            raise UserError(f"VQModel.decode: expected {rows} x {columns} codes per picture, found {length}")
        map_NKHW = vectors_NLK.transpose(1, 2).reshape(count, width, rows, columns)
        return self.decoder(self.from_code(map_NKHW.to(self.from_code.weight.dtype)))

    def _checked(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        stride = self.config.stride
        if pixels_N3HW.ndim != 4 or pixels_N3HW.shape[1] != 3 or any(side % stride for side in pixels_N3HW.shape[2:]):
            raise UserError(
                f"VQModel: expected pixels [N, 3, H, W] with sides in multiples of {stride}, "
                f"found {tuple(pixels_N3HW.shape)}"
            )
        return pixels_N3HW.to(self.encoder.conv_in.weight.dtype)


def _check(config: VQConfig) -> None:
    size, stride = config.image_size, config.stride
    if size % stride:
        raise UserError(f"VQConfig: image_size: expected a multiple of the stride {stride}, found {size}")
    if config.normalisation not in ("group", "none"):
        raise UserError(f"VQConfig: normalisation: expected 'group' or 'none', found '{config.normalisation}'")
    for name, channels in (("channels", config.channels), ("decoder_channels", config.decoder_channels)):
        if config.normalisation == "group" and channels is not None and channels % 32:
            raise UserError(f"VQConfig: {name}: expected a multiple of 32 (GroupNorm with 32 groups), found {channels}")
