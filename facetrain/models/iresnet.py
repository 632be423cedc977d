"""IResNet: the improved residual network of the ArcFace line of work.

Source: Deng et al., "ArcFace", CVPR 2019, section 3.1 (a stem that does not stride, BN-Conv-BN-PReLU-Conv-BN units, an
output of BN-Dropout-FC-BN), on top of He et al., CVPR 2016. Parameters bear the names of insightface's `iresnet.py`, so
that its state dicts load.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}
_EPS = 1e-5


def _activation(name: str, channels: int) -> nn.Module:
    return nn.PReLU(channels) if name == "prelu" else nn.ReLU(inplace=True)


class Block(nn.Module):
    """One residual unit: (B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, _EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, _EPS)
        self.prelu = _activation(activation, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, _EPS)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs, _EPS))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut."""
        branch = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        branch = self.bn3(self.conv2(branch))
        return branch + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Images (B, 3, input_size, input_size) -> embeddings (B, D), not L2-normalised.

    Args:
        blocks: residual units in each of the four stages.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        input_size: pixels a side.
        embedding_size: D.
        activation: ``prelu`` or ``relu`` (on a CPU PReLU's backward pass is a fifth of the step).
        dropout: probability before the last linear layer.
        gradient_checkpointing: keep only the input of each unit and recompute the rest in the backward pass.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        width: int = 64,
        input_size: int = 112,
        embedding_size: int = 512,
        activation: str = "prelu",
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, _EPS)
        self.prelu = _activation(activation, width)
        channels, side = width, input_size
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            units = [Block(channels, outputs, 2, activation)]
            units += [Block(outputs, outputs, 1, activation) for _ in range(count - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*units))
            channels, side = outputs, (side + 1) // 2
        self.stages = len(blocks)
        self.bn2 = nn.BatchNorm2d(channels, _EPS)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels * side * side, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size, _EPS)
        # A learnt scale would only rescale what the cosine normalises away again.
        nn.init.ones_(self.features.weight)
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, D)."""
        x = self.prelu(self.bn1(self.conv1(images)))
        for stage in range(1, self.stages + 1):
            for unit in getattr(self, f"layer{stage}"):
                if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                    x = _recomputed(unit, x)
                else:
                    x = unit(x)
        x = self.dropout(self.bn2(x).flatten(1))
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would leave the cosines 8 bits
            return self.features(self.fc(x.to(self.fc.weight.dtype)))


def _recomputed(unit: nn.Module, x: Tensor) -> Tensor:
    """``unit(x)``, computed again in the backward pass; running statistics see each batch once."""

    @contextlib.contextmanager
    def on_copies_of_the_statistics() -> Iterator[None]:
        held = [(part, name, value) for part in unit.modules() for name, value in part.named_buffers(recurse=False)]
        for part, name, value in held:
            setattr(part, name, value.clone())
        try:
            yield
        finally:
            for part, name, value in held:
                setattr(part, name, value)

    if torch.compiler.is_compiling():  # the compiler recomputes without these side effects
        return checkpoint(unit, x, use_reentrant=False, preserve_rng_state=False)
    return checkpoint(
        unit,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a unit is random
        context_fn=lambda: (contextlib.nullcontext(), on_copies_of_the_statistics()),
    )
