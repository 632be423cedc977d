"""Backbones by name, and the one way images reach them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from facetrain.config import ModelConfig
from facetrain.models.iresnet import BLOCKS, IResNet

BACKBONES: dict[str, Callable[..., nn.Module]] = {name: partial(IResNet, blocks) for name, blocks in BLOCKS.items()}


def build_backbone(config: ModelConfig) -> nn.Module:
    """A freshly initialised backbone: (B, 3, input_size, input_size) float -> (B, embedding_size), not normalised."""
    backbone = BACKBONES[config.name](
        width=config.width,
        input_size=config.input_size,
        embedding_size=config.embedding_size,
        activation=config.activation,
        dropout=config.dropout,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on every device


def normalise(images: Tensor) -> Tensor:
    """What every backbone sees: RGB scaled to -1..1, as insightface's training and runtime do.

    Args:
        images: (n, H, W, 3) uint8, on any device.

    Returns:
        (n, 3, H, W) float32; its memory is laid out channels last, being a view of the input's order.
    """
    return images.permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5)
