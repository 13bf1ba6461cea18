"""InceptionV3 as the published FID numbers were measured with, in the layout of its weights' file.

Built by `extractors.py`. It is the network of TensorFlow's `classify_image_graph_def.pb`, which
differs from torchvision's: averages leave out the padding, the last block takes a maximum, there
are 1008 classes, and images are enlarged as TensorFlow 1 did. torch-fidelity has it too, but cannot
be imported without torchvision, whose compiled operators have to fit torch's build; a test compares
both. Source: arXiv 1512.00567.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_SIZE = 299
NUM_CLASSES = 1008
POOL_WIDTH = 2048
SPATIAL_CHANNELS = 7  # of mixed_6/conv that make sFID's features

AVERAGE, MAXIMUM, HALVE = "average", "maximum", "halve"  # the poolings of a path

Kernel = int | tuple[int, int]
Path = tuple[str, ...]


class InceptionOutput(NamedTuple):
    """What evaluations read of the network."""

    pool: Tensor  # (B, 2048): pool_3
    spatial: Tensor  # (B, 17 · 17 · 7): mixed_6/conv, channels last
    logits: Tensor  # (B, 1008), without the bias, as the published scores have it


class ConvNorm(nn.Module):
    """Convolution, norm, ReLU; at stride 1 the size stays the same unless `padding` says else."""

    def __init__(
        self,
        width: int,
        out_width: int,
        kernel: Kernel,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        height, breadth = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (height // 2, breadth // 2) if stride == 1 else (0, 0)
        self.conv = nn.Conv2d(
            width,
            out_width,
            (height, breadth),
            stride,
            same if padding is None else padding,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Paths through named convolutions and poolings, side by side; paths may begin alike."""

    def __init__(self, paths: Sequence[Path], layers: Mapping[str, ConvNorm]) -> None:
        super().__init__()
        self.paths = paths
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, height, width) → the ends of all paths, one after the other as channels."""
        done: dict[Path, Tensor] = {(): x}
        for path in self.paths:
            for end in range(1, len(path) + 1):
                if path[:end] not in done:
                    done[path[:end]] = self._take(path[end - 1], done[path[: end - 1]])
        return torch.cat([done[path] for path in self.paths], dim=1)

    def _take(self, step: str, x: Tensor) -> Tensor:
        if step == AVERAGE:
            return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        if step == MAXIMUM:
            return F.max_pool2d(x, 3, stride=1, padding=1)
        if step == HALVE:
            return F.max_pool2d(x, 3, stride=2)
        out: Tensor = self.get_submodule(step)(x)
        return out


def _block_35(width: int, pool_width: int) -> Block:
    """35 × 35: 1×1, 5×5, two 3×3, average."""
    return Block(
        (
            ("branch1x1",),
            ("branch5x5_1", "branch5x5_2"),
            ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            (AVERAGE, "branch_pool"),
        ),
        {
            "branch1x1": ConvNorm(width, 64, 1),
            "branch5x5_1": ConvNorm(width, 48, 1),
            "branch5x5_2": ConvNorm(48, 64, 5),
            "branch3x3dbl_1": ConvNorm(width, 64, 1),
            "branch3x3dbl_2": ConvNorm(64, 96, 3),
            "branch3x3dbl_3": ConvNorm(96, 96, 3),
            "branch_pool": ConvNorm(width, pool_width, 1),
        },
    )


def _block_to_17(width: int) -> Block:
    """35 × 35 → 17 × 17."""
    return Block(
        (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), (HALVE,)),
        {
            "branch3x3": ConvNorm(width, 384, 3, stride=2),
            "branch3x3dbl_1": ConvNorm(width, 64, 1),
            "branch3x3dbl_2": ConvNorm(64, 96, 3),
            "branch3x3dbl_3": ConvNorm(96, 96, 3, stride=2),
        },
    )


def _block_17(width: int, inner: int) -> Block:
    """17 × 17: 1×1, rows and columns of seven once and twice, average."""
    row, column = (1, 7), (7, 1)
    twice = ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3")
    return Block(
        (
            ("branch1x1",),
            ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
            (*twice, "branch7x7dbl_4", "branch7x7dbl_5"),
            (AVERAGE, "branch_pool"),
        ),
        {
            "branch1x1": ConvNorm(width, 192, 1),
            "branch7x7_1": ConvNorm(width, inner, 1),
            "branch7x7_2": ConvNorm(inner, inner, row),
            "branch7x7_3": ConvNorm(inner, 192, column),
            "branch7x7dbl_1": ConvNorm(width, inner, 1),
            "branch7x7dbl_2": ConvNorm(inner, inner, column),
            "branch7x7dbl_3": ConvNorm(inner, inner, row),
            "branch7x7dbl_4": ConvNorm(inner, inner, column),
            "branch7x7dbl_5": ConvNorm(inner, 192, row),
            "branch_pool": ConvNorm(width, 192, 1),
        },
    )


def _block_to_8(width: int) -> Block:
    """17 × 17 → 8 × 8."""
    return Block(
        (
            ("branch3x3_1", "branch3x3_2"),
            ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"),
            (HALVE,),
        ),
        {
            "branch3x3_1": ConvNorm(width, 192, 1),
            "branch3x3_2": ConvNorm(192, 320, 3, stride=2),
            "branch7x7x3_1": ConvNorm(width, 192, 1),
            "branch7x7x3_2": ConvNorm(192, 192, (1, 7)),
            "branch7x7x3_3": ConvNorm(192, 192, (7, 1)),
            "branch7x7x3_4": ConvNorm(192, 192, 3, stride=2),
        },
    )


def _block_8(width: int, pooling: str) -> Block:
    """8 × 8: paths that end in a row of three beside a column of three."""
    twice = ("branch3x3dbl_1", "branch3x3dbl_2")
    return Block(
        (
            ("branch1x1",),
            ("branch3x3_1", "branch3x3_2a"),
            ("branch3x3_1", "branch3x3_2b"),
            (*twice, "branch3x3dbl_3a"),
            (*twice, "branch3x3dbl_3b"),
            (pooling, "branch_pool"),
        ),
        {
            "branch1x1": ConvNorm(width, 320, 1),
            "branch3x3_1": ConvNorm(width, 384, 1),
            "branch3x3_2a": ConvNorm(384, 384, (1, 3)),
            "branch3x3_2b": ConvNorm(384, 384, (3, 1)),
            "branch3x3dbl_1": ConvNorm(width, 448, 1),
            "branch3x3dbl_2": ConvNorm(448, 384, 3),
            "branch3x3dbl_3a": ConvNorm(384, 384, (1, 3)),
            "branch3x3dbl_3b": ConvNorm(384, 384, (3, 1)),
            "branch_pool": ConvNorm(width, 192, 1),
        },
    )


class Inception(nn.Module):
    """The network, for uint8 images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, padding=0)
        self.Mixed_5b = _block_35(192, 32)
        self.Mixed_5c = _block_35(256, 64)
        self.Mixed_5d = _block_35(288, 64)
        self.Mixed_6a = _block_to_17(288)
        self.Mixed_6b = _block_17(768, 128)
        self.Mixed_6c = _block_17(768, 160)
        self.Mixed_6d = _block_17(768, 160)
        self.Mixed_6e = _block_17(768, 192)
        self.Mixed_7a = _block_to_8(768)
        self.Mixed_7b = _block_8(1280, AVERAGE)
        self.Mixed_7c = _block_8(2048, MAXIMUM)
        self.fc = nn.Linear(POOL_WIDTH, NUM_CLASSES)

    def forward(self, images: Tensor) -> InceptionOutput:
        """Uint8 (B, 3, height, width) → features and class logits."""
        x = (enlarged(images.float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))
        # TensorFlow's mixed_6/conv is the first path of this block, and so its first channels.
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pool = x.mean(dim=(2, 3))
        return InceptionOutput(pool, spatial, F.linear(pool, self.fc.weight))


def enlarged(images: Tensor) -> Tensor:
    """Scale (B, 3, height, width) to 299 × 299 as TensorFlow 1 did: bilinear, corners uncentred."""
    for dim in (3, 2):
        size = images.shape[dim]
        place = torch.arange(INPUT_SIZE, device=images.device) * torch.tensor(size / INPUT_SIZE)
        low = place.long()
        high = (low + 1).clamp(max=size - 1)
        share = (place - low).view(-1, *[1] * (3 - dim))
        below, above = images.index_select(dim, low), images.index_select(dim, high)
        images = below + (above - below) * share
    return images
