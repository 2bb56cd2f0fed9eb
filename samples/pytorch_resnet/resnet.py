"""A ResNet-18 (He et al. 2015) with random weights: `samples.pytorch_resnet.resnet:resnet18`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block: two convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        plain = before == after and stride == 1
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.shortcut = nn.Identity() if plain else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """A classifier from `pixels`, float32 [batch, 3, height, width], to `logits`, float32 [batch, classes]."""

    def __init__(self, classes: int = 100) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        self.body = nn.Sequential(
            *(nn.Sequential(Block(before, after, stride), Block(after, after, 1)) for before, after, stride in widths)
        )
        self.head = nn.Linear(512, classes)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Run the network."""
        return {"logits": self.head(self.body(self.stem(pixels)).mean((2, 3)))}


def resnet18() -> nn.Module:
    """Return the module. trtopt seeds torch first, so that the weights are the same each time."""
    return ResNet18()
