"""Factories of the networks, for trtopt's own export: `nets.factories:resnet`."""

from __future__ import annotations

from functools import partial

from nets.catalog import module

resnet, convnext, mobilenet = partial(module, "resnet"), partial(module, "convnext"), partial(module, "mobilenet")
unet, vit, efficientnet = partial(module, "unet"), partial(module, "vit"), partial(module, "efficientnet")
swin, detr, bert = partial(module, "swin"), partial(module, "detr"), partial(module, "bert")
gpt, whisper, wave = partial(module, "gpt"), partial(module, "whisper"), partial(module, "wave")
