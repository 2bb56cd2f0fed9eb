"""The networks of this folder with their samples, and the forms in which they are exported."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from nets import attention, images, sequences
from torch import nn

Arrays = dict[str, np.ndarray]
LOW, HIGH = 12, 40  # lengths
OPSETS = {"script": (13, 17), "dynamo": (18, 20, 21)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network.

    Attributes:
        make: the class of the module.
        draw: returns a batch of samples, given their number, their length and a generator.
        free: the axes other than 0 that are dynamic, by input.
        exporters: those that can export it.
    """

    make: Callable[[], nn.Module]
    draw: Callable[[int, int, np.random.Generator], Arrays]
    free: Mapping[str, tuple[int, ...]]
    exporters: tuple[str, ...] = ("script", "dynamo")


def _image(size: int) -> Callable[[int, int, np.random.Generator], Arrays]:
    def draw(batch: int, length: int, random: np.random.Generator) -> Arrays:
        # Smooth like images: coarse noise, repeated, and a little fine noise.
        coarse = random.normal(size=(batch, 3, size // 8, size // 8)).repeat(8, 2).repeat(8, 3)
        return {"image": np.float32(coarse + 0.3 * random.normal(size=(batch, 3, size, size)))}

    return draw


def _ids(batch: int, length: int, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 100, (batch, length))


def _sentence(batch: int, length: int, random: np.random.Generator) -> Arrays:
    mask = np.arange(length) < random.integers(length // 2, length + 1, (batch, 1))
    return {"input_ids": _ids(batch, length, random), "attention_mask": mask.astype(np.int64)}


def _past(batch: int, length: int, random: np.random.Generator) -> Arrays:
    names = ("key_0", "value_0", "key_1", "value_1")
    past = {name: np.float32(random.normal(size=(batch, 2, length // 2, 32))) for name in names}
    return {"input_ids": _ids(batch, length, random), **past}


def _tagged(batch: int, length: int, random: np.random.Generator) -> Arrays:
    return {"ids": _ids(batch, length, random), "lengths": random.integers(length // 2, length + 1, batch)}


def _mel(batch: int, length: int, random: np.random.Generator) -> Arrays:
    return {"mel": np.float32(random.normal(size=(batch, 40, 2 * length)))}


def _wave(batch: int, length: int, random: np.random.Generator) -> Arrays:
    return {"wave": np.float32(random.normal(size=(batch, 24 * length)))}


NETWORKS = {
    "resnet": Network(make=images.ResNet, draw=_image(64), free={}),
    "mobilenet": Network(make=images.MobileNet, draw=_image(64), free={}),
    "efficientnet": Network(make=images.EfficientNet, draw=_image(64), free={}),
    "convnext": Network(make=images.ConvNeXt, draw=_image(64), free={}),
    "unet": Network(make=images.UNet, draw=_image(32), free={}),
    "vit": Network(make=attention.ViT, draw=_image(32), free={}),
    "swin": Network(make=attention.Swin, draw=_image(32), free={}),
    "detr": Network(make=attention.DETR, draw=_image(32), free={}),
    "bert": Network(make=attention.BERT, draw=_sentence, free={"input_ids": (1,), "attention_mask": (1,)}),
    "gpt": Network(
        make=attention.GPT,
        draw=_past,
        free={"input_ids": (1,), **dict.fromkeys(("key_0", "value_0", "key_1", "value_1"), (2,))},
    ),
    "whisper": Network(make=attention.Whisper, draw=_mel, free={"mel": (2,)}),
    "wave": Network(make=sequences.Wave, draw=_wave, free={"wave": (1,)}),
    "tagger": Network(make=sequences.Tagger, draw=_tagged, free={"ids": (1,)}, exporters=("script",)),
}


@functools.cache
def module(name: str) -> nn.Module:
    """Return the network with random weights, statistics of its own activations in its norms, in evaluation mode."""
    torch.manual_seed(0)
    network = NETWORKS[name]
    made, random = network.make(), np.random.default_rng(7)
    with torch.no_grad():
        for part in made.modules():
            if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)) or type(part).__name__ == "LayerNorm2d":
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None  # the average over all batches
            if isinstance(part, nn.Conv2d) and part.bias is None:
                nn.init.kaiming_normal_(part.weight)
        made.train()
        for _ in range(4):
            made(*tensors(network.draw(16, HIGH, random)))
    return made.eval()


def tensors(feed: Arrays) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in feed.values())


def outputs(name: str, feed: Arrays) -> list[np.ndarray]:
    """Return what PyTorch computes."""
    with torch.no_grad():
        found = module(name)(*tensors(feed))
    return [value.numpy() for value in ([found] if isinstance(found, torch.Tensor) else found)]


@dataclass(frozen=True, slots=True)
class Form:
    """A way to export: `script` or `dynamo`, an opset, and a fixed batch, or None for a dynamic one."""

    exporter: str
    opset: int
    batch: int | None = None

    def __str__(self) -> str:
        return f"{self.exporter} {self.opset}, batch {self.batch or 'n'}"


def export(name: str, form: Form, path: Path) -> Path:
    """Export a network in a form."""
    network = NETWORKS[name]
    batch = form.batch or 3
    feed = network.draw(batch, HIGH // 2, np.random.default_rng(1))
    axes = {key: {**({} if form.batch else {0: "n"}), **{axis: f"{key}_{axis}" for axis in network.free.get(key, ())}}
            for key in feed}  # fmt: skip
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in module(name).modules():
            if isinstance(part, (attention.Attention, attention.Decoder, attention.BertLayer)):
                part.fused = part.can_fuse and form.opset > 13  # the exporter has no form of it for opset 13
        if form.exporter == "script":
            torch.onnx.export(
                module(name), tensors(feed), str(path), dynamo=False, input_names=list(feed), dynamic_axes=axes,
                opset_version=form.opset, do_constant_folding=form.opset > 13,
            )  # fmt: skip
        else:
            dynamic = {key: dict.fromkeys(value, torch.export.Dim.DYNAMIC) for key, value in axes.items()}
            torch.onnx.export(
                module(name), (), str(path), kwargs=dict(zip(feed, tensors(feed), strict=True)), dynamo=True,
                dynamic_shapes=dynamic, opset_version=form.opset, verbose=False, external_data=False,
            )  # fmt: skip
    assert onnx.load(path).opset_import[0].version == form.opset
    return path
