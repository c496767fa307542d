"""The Inception network of the FID: Inception-v3 as TensorFlow published it in December 2015, in torch alone.

Why it is here: torch-fidelity and torchmetrics, which carry it, import torchvision, and a torchvision that was built
for another torch takes transformers and trl down with it; torch-fidelity also reads weights by unpickling them. This
reads the same file without running anything in it:

    weights-inception-2015-12-05-6726825d.pth   release v0.2.0 of github.com/toshas/torch-fidelity (Apache-2.0); the
                                                pt_inception-2015-12-05-6726825d.pth of pytorch-fid has the same tensors

Where it differs from Inception-v3 as in torchvision: averages leave the padding out; the last block pools the maximum;
BatchNorm's epsilon is 1e-3; 1,008 classes. Pictures are resized to 299 as TensorFlow 1 does: bilinear, no antialiasing,
and the corner pixels' centres do not stay where they were; then (x - 128) / 128.

Shapes: N pictures, H rows, W columns, C = 2048 features.
"""

from __future__ import annotations

from pathlib import Path

import torch
from mentor_rewards.contract import RewardError
from mentor_rewards.pretrained import check_names, read_tensors
from torch import nn
from torch.nn import functional as F

from mentor_base.errors import UserError

SIDE, FEATURES, CLASSES = 299, 2048, 1008
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"

Kernel = int | tuple[int, int]


class Convolution(nn.Module):
    """Convolution without bias, BatchNorm, ReLU. Padding keeps the size where the stride is 1, unless told."""

    def __init__(self, inside: int, out: int, kernel: Kernel, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2, size[1] // 2) if stride == 1 and pad else (0, 0)
        self.conv = nn.Conv2d(inside, out, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


Step = tuple[str, int, Kernel, int]  # name, channels, kernel, stride of a convolution
Chain = tuple[tuple[Step, ...], ...]  # one after the other; steps in one tuple stand side by side


class Block(nn.Module):
    """Chains side by side, joined along the channels; the pooling branch comes last.

    Args:
        pooled: channels of the convolution behind the pooling; None: the pooling halves the picture and stands alone.
        largest: pool the maximum instead of the mean.
    """

    def __init__(self, inside: int, chains: tuple[Chain, ...], pooled: int | None, largest: bool = False) -> None:
        super().__init__()
        self.chains, self.largest = chains, largest
        for chain in chains:
            width = inside
            for fork in chain:
                for name, channels, kernel, stride in fork:
                    self.add_module(name, Convolution(width, channels, kernel, stride))
                width = sum(channels for _, channels, _, _ in fork)
        self.branch_pool = None if pooled is None else Convolution(inside, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = [self._follow(chain, x) for chain in self.chains]
        if self.branch_pool is None:
            joined.append(F.max_pool2d(x, 3, 2))
        elif self.largest:
            joined.append(self.branch_pool(F.max_pool2d(x, 3, 1, 1)))
        else:
            joined.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        return torch.cat(joined, 1)

    def _follow(self, chain: Chain, x: torch.Tensor) -> torch.Tensor:
        for fork in chain:
            x = torch.cat([self.get_submodule(name)(x) for name, *_ in fork], 1)
        return x


def _chain(*steps: Step) -> Chain:
    return tuple((step,) for step in steps)


_ROW, _COLUMN = (1, 7), (7, 1)


def _squares(inside: int, pooled: int) -> Block:
    """The blocks at 35 x 35."""
    five = _chain(("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1))
    twice = _chain(("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1))
    return Block(inside, (_chain(("branch1x1", 64, 1, 1)), five, twice), pooled)


def _to_17(inside: int) -> Block:
    twice = _chain(("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 2))
    return Block(inside, (_chain(("branch3x3", 384, 3, 2)), twice), None)


def _strips(inside: int, narrow: int) -> Block:
    """The blocks at 17 x 17, whose kernels are rows and columns of seven."""
    seven = _chain(("branch7x7_1", narrow, 1, 1), ("branch7x7_2", narrow, _ROW, 1), ("branch7x7_3", 192, _COLUMN, 1))
    twice = _chain(
        ("branch7x7dbl_1", narrow, 1, 1),
        ("branch7x7dbl_2", narrow, _COLUMN, 1),
        ("branch7x7dbl_3", narrow, _ROW, 1),
        ("branch7x7dbl_4", narrow, _COLUMN, 1),
        ("branch7x7dbl_5", 192, _ROW, 1),
    )
    return Block(inside, (_chain(("branch1x1", 192, 1, 1)), seven, twice), 192)


def _to_8(inside: int) -> Block:
    three = _chain(("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2))
    seven = _chain(
        ("branch7x7x3_1", 192, 1, 1),
        ("branch7x7x3_2", 192, _ROW, 1),
        ("branch7x7x3_3", 192, _COLUMN, 1),
        ("branch7x7x3_4", 192, 3, 2),
    )
    return Block(inside, (three, seven), None)


def _forked(inside: int, largest: bool) -> Block:
    """The blocks at 8 x 8, whose chains end in a row and a column of three side by side."""
    three: Chain = (
        *_chain(("branch3x3_1", 384, 1, 1)),
        (("branch3x3_2a", 384, (1, 3), 1), ("branch3x3_2b", 384, (3, 1), 1)),
    )
    twice: Chain = (
        *_chain(("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 1)),
        (("branch3x3dbl_3a", 384, (1, 3), 1), ("branch3x3dbl_3b", 384, (3, 1), 1)),
    )
    return Block(inside, (_chain(("branch1x1", 320, 1, 1)), three, twice), 192, largest)


class Inception(nn.Module):
    """Pictures -> features. Submodules are named as in the file of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _squares(192, 32), _squares(256, 64), _squares(288, 64)
        self.Mixed_6a = _to_17(288)
        self.Mixed_6b, self.Mixed_6c = _strips(768, 128), _strips(768, 160)
        self.Mixed_6d, self.Mixed_6e = _strips(768, 160), _strips(768, 192)
        self.Mixed_7a = _to_8(768)
        self.Mixed_7b, self.Mixed_7c = _forked(1280, largest=False), _forked(2048, largest=True)
        self.fc = nn.Linear(FEATURES, CLASSES)  # in the file; the FID does not use it

    def forward(self, bytes_N3HW: torch.Tensor) -> torch.Tensor:
        """Pictures as whole numbers 0 to 255, any float dtype -> [N, C]."""
        x = (resized(bytes_N3HW) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, module in self.named_children():
            if name.startswith("Mixed"):
                x = module(x)
        return x.mean((2, 3))


def resized(pixels_N3HW: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """TensorFlow 1's bilinear resizing: output pixel i looks at input position i x old / new."""
    for axis in (2, 3):
        old = pixels_N3HW.shape[axis]
        place = torch.arange(side, dtype=pixels_N3HW.dtype, device=pixels_N3HW.device) * (old / side)
        low = place.long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        share = (place - low).view(-1, 1) if axis == 2 else place - low
        first, second = pixels_N3HW.index_select(axis, low), pixels_N3HW.index_select(axis, high)
        pixels_N3HW = first + (second - first) * share
    return pixels_N3HW


def load_inception(path: str | Path) -> Inception:
    """The network with the published weights, frozen.

    Raises:
        UserError: no such file, or other tensors in it.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; expected {WEIGHTS} (release v0.2.0 of github.com/toshas/torch-fidelity, or "
            "pt_inception-2015-12-05-6726825d.pth of pytorch-fid)"
        )
    with torch.device("meta"):  # without weights of its own
        network = Inception()
    expected = network.state_dict()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # not in every copy of the file
    try:
        found = read_tensors(file)
        check_names(set(found) | counters, set(expected), str(file))
    except RewardError as error:
        raise UserError(str(error)) from error
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{file}: tensor '{name}': expected shape {tuple(expected[name].shape)}, found {tuple(tensor.shape)}"
            )
    zero = torch.zeros((), dtype=torch.long)
    network.load_state_dict({**dict.fromkeys(counters, zero), **found}, assign=True)
    return network.eval().requires_grad_(False)
