"""The two convolutional networks of the perceptual losses, in the layout of their published files.

Built by `perceptual_losses.py`. Both are small to write and large to import: torchvision brings
compiled operators that have to fit torch's build, and of it only these layers would be used.
Sources: VGG, arXiv 1409.1556; ConvNeXt, arXiv 2201.03545.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Vgg16(nn.Module):
    """VGG16's convolutions. `forward` returns what every ReLU and every pooling gives."""

    def __init__(self, widths: Sequence[Sequence[int]] = VGG16_WIDTHS) -> None:
        super().__init__()
        layers, channels = list[nn.Module](), 3
        for stage in widths:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Normalised pixels (B, 3, height, width) → the ReLUs of each stage, and the poolings."""
        stages: list[list[Tensor]] = [[]]
        pooled: list[Tensor] = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                stages[-1].append(x)
            elif isinstance(layer, nn.MaxPool2d):
                pooled.append(x)
                stages.append([])
        return stages[:-1], pooled


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Permute(nn.Module):
    """Move axes; it holds a place in the published numbering of layers."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


class ConvNextBlock(nn.Module):
    """Depthwise convolution, norm, two linear layers, scaled and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Permute(0, 3, 1, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layer_scale * self.block(x)
        return out


class ConvNext(nn.Module):
    """A ConvNeXt classifier; the defaults are ConvNeXt-S."""

    def __init__(
        self,
        widths: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 27, 3),
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), ChannelNorm(widths[0], eps=1e-6))
        stages: list[nn.Module] = [stem]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if index:
                before = widths[index - 1]
                stages.append(
                    nn.Sequential(
                        ChannelNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, stride=2)
                    )
                )
            stages.append(nn.Sequential(*(ConvNextBlock(width) for _ in range(depth))))
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Sequential(
            ChannelNorm(widths[-1], eps=1e-6), nn.Flatten(1), nn.Linear(widths[-1], num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels (B, 3, height, width) → logits (B, classes)."""
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(x), 1))
        return logits
