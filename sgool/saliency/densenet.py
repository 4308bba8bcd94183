"""DenseNet-161 without its classifier (Huang et al., CVPR 2017), with the names of TranSalNet's checkpoint."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROWTH = 48
BOTTLENECK = 4 * GROWTH
BLOCKS = (6, 12, 36, 24)


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1x1, batch norm, ReLU, 3x3: [B, C, H, W] -> the 48 new channels [B, 48, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, BOTTLENECK, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK)
        self.conv2 = nn.Conv2d(BOTTLENECK, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x)))
        x = self.conv2(F.relu(self.norm2(x)))
        return x


class DenseBlock(nn.Sequential):
    """Each layer sees all channels made before it: [B, C, H, W] -> [B, C + 48*layers, H, W]."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__(OrderedDict((f"denselayer{i + 1}", DenseLayer(channels + i * GROWTH)) for i in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = torch.cat([x, layer(x)], dim=1)
        return x


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


def densenet161() -> nn.ModuleList:
    """The eleven children of a DenseNet-161 up to its last block. 6, 8 and 10 are at 1/8, 1/16, 1/32 of the image."""
    channels = 2 * GROWTH
    children: list[nn.Module] = [
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    for number, layers in enumerate(BLOCKS):
        if number:
            children.append(_transition(channels))
            channels //= 2
        children.append(DenseBlock(channels, layers))
        channels += layers * GROWTH
    return nn.ModuleList(children)
