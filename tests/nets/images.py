"""Small image networks in PyTorch, each with the parts that make its family hard to export or to quantize."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = conv_norm(inputs, width, 1), conv_norm(width, width, 3, stride)
        self.c = conv_norm(width, 4 * width, 1)
        is_same = stride == 1 and inputs == 4 * width
        self.down = nn.Identity() if is_same else conv_norm(inputs, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.b(functional.relu(self.a(x))))
        return functional.relu(self.c(y) + self.down(x))


class ResNet(nn.Module):
    """Bottleneck blocks, a stem with a max pool, an average pool before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 32, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(Bottleneck(32, 16, 1), Bottleneck(64, 16, 1), Bottleneck(64, 32, 2))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(128, 20)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(image))), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 16, 1), nn.Conv2d(16, channels, 1)
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(functional.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, act: nn.Module, excite: nn.Module) -> None:
        super().__init__()
        wide = 4 * inputs
        self.body = nn.Sequential(
            conv_norm(inputs, wide, 1), act, conv_norm(wide, wide, 5, stride, groups=wide), act, excite,
            conv_norm(wide, outputs, 1),
        )  # fmt: skip
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.is_residual else self.body(x)


class MobileNet(nn.Module):
    """MobileNetV3: HardSwish, HardSigmoid in squeeze and excitation, depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.Hardswish()

        def block(inputs: int, outputs: int, stride: int, act: nn.Module) -> Inverted:
            return Inverted(inputs, outputs, stride, act, SqueezeExcite(4 * inputs, nn.ReLU(), nn.Hardsigmoid()))

        self.stem = nn.Sequential(conv_norm(3, 16, 3, 2), act)
        self.blocks = nn.Sequential(block(16, 24, 2, nn.ReLU()), block(24, 24, 1, act), block(24, 40, 2, act))
        self.last = nn.Sequential(conv_norm(40, 160, 1), act)
        self.head = nn.Sequential(nn.Linear(160, 64), act, nn.Dropout(0.2), nn.Linear(64, 20))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(image))).mean((2, 3)))


class EfficientNet(nn.Module):
    """SiLU, a sigmoid in squeeze and excitation, padding as in TensorFlow."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()

        def block(inputs: int, outputs: int, stride: int) -> Inverted:
            return Inverted(inputs, outputs, stride, act, SqueezeExcite(4 * inputs, act, nn.Sigmoid()))

        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, eps=1e-3), act)
        self.blocks = nn.Sequential(block(32, 24, 2), block(24, 24, 1), block(24, 40, 2), block(40, 40, 1))
        self.head = nn.Sequential(conv_norm(40, 160, 1), act, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 20))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(self.pad(image))))


class LayerNorm2d(nn.Module):
    """A norm over the channels of an image, written out, as in ConvNeXt and in segmentation networks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class NextBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(functional.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Linear layers over channels between two permutations, GELU, layer scale, two ways to write a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 4, 4), LayerNorm2d(32))
        self.first = nn.Sequential(NextBlock(32), NextBlock(32))
        self.down = nn.Sequential(LayerNorm2d(32), nn.Conv2d(32, 64, 2, 2))
        self.second = nn.Sequential(NextBlock(64), NextBlock(64))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 20)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.norm(self.second(self.down(self.first(self.stem(image)))).mean([-2, -1])))


class UNet(nn.Module):
    """Skip connections by concatenation, a transposed convolution, an interpolation to the size of another tensor."""

    def __init__(self) -> None:
        super().__init__()

        def double(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                conv_norm(inputs, outputs), nn.ReLU(inplace=True), conv_norm(outputs, outputs), nn.LeakyReLU(0.1)
            )

        self.one, self.two, self.three = double(3, 32), double(32, 48), double(48, 64)
        self.up2, self.merge2 = nn.ConvTranspose2d(64, 48, 2, 2), double(96, 48)
        self.merge1, self.head = double(48 + 32, 32), nn.Conv2d(32, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        one = self.one(image)
        two = self.two(functional.max_pool2d(one, 2))
        three = self.three(functional.max_pool2d(two, 2))
        two = self.merge2(torch.cat([self.up2(three), two], 1))
        up = functional.interpolate(two, size=one.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(self.merge1(torch.cat([up, one], 1)))
