"""Factories that the tests pass to trtopt, as `frameworks:small` in the folder of this file."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from torch import Tensor, nn

NOT_A_FUNCTION = 3


class Small(nn.Module):
    """A network with convolution, normalization, dropout and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and features."""
        features = self.drop(torch.relu(self.norm(self.conv(image)))).mean((2, 3))
        return self.head(features), features


class Masked(nn.Module):
    """A network with two integer inputs, both sequences, and a named output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 4)

    def forward(self, ids: Tensor, mask: Tensor, scale: float = 2.0) -> dict[str, Tensor]:
        """Return the masked sum of the embeddings."""
        return {"pooled": (self.table(ids) * mask[..., None]).sum(1) * scale}


class Fixed(nn.Module):
    """A network with a batch size of 4 hard-coded in a reshape."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the doubled batch."""
        return x.reshape(4, 6) * 2


class Indexed(nn.Module):
    """A network whose buffer is named like a value of the exporter's own, as in a Swin transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(98.0).reshape(49, 2))
        self.register_buffer("index", torch.arange(16).reshape(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with two biases for each pair of positions."""
        for _ in range(2):
            x = torch.relu(x + self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)[None])
        return x


class CamelCase(nn.Module):
    """A network whose input has an uppercase letter in its name."""

    def forward(self, pixelValues: Tensor) -> Tensor:  # noqa: N803 - the point of this network
        """Return the doubled input."""
        return pixelValues * 2


def camel_case() -> nn.Module:
    return CamelCase()


def indexed() -> nn.Module:
    return Indexed()


def small() -> nn.Module:
    return Small()


def masked() -> nn.Module:
    return Masked()


def fixed() -> nn.Module:
    return Fixed()


def evaluated() -> nn.Module:
    return Small().eval()


def drifting() -> nn.Module:
    """Return a network with other weights in each process, so that the export differs from the network that is run."""
    torch.manual_seed(time.time_ns() % 2**31)
    return Small()


def noisy() -> nn.Module:
    print("noise on stdout")
    print("noise on stderr", file=sys.stderr)
    return Small()


def failing() -> nn.Module:
    raise ValueError("no such size: 7")


def nothing() -> str:
    return "a module"


def killed() -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    return Small()


def hanging() -> nn.Module:
    time.sleep(600)
    return Small()


def leaving() -> nn.Module:
    os._exit(0)
