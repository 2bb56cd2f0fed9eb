"""Factories of the networks, for trtopt's own export: `nets.factories:resnet`."""

from __future__ import annotations

from functools import partial

from nets.catalog import module

resnet, mobilenet = partial(module, "resnet"), partial(module, "mobilenet")
efficientnet = partial(module, "efficientnet")
    partial(module, "resnet"),
    partial(module, "mobilenet"),
    partial(module, "efficientnet"),
)
convnext, unet, vit = partial(module, "convnext"), partial(module, "unet"), partial(module, "vit")
swin, detr, bert = partial(module, "swin"), partial(module, "detr"), partial(module, "bert")
gpt, whisper, wave = partial(module, "gpt"), partial(module, "whisper"), partial(module, "wave")
