"""The residual CNN family: from a 300k teacher to a student of a few thousand parameters.

Every network takes raw values (N, C, H, W) and returns logits (N, classes): normalisation is its
first layer, so that nothing outside can forget it.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from tasks.core.models import Architecture, Normalisation
from tasks.core.tables import Schema
from tasks.modalities.vision.batch_norm import BatchNorm


class Shortcut(nn.Conv2d):
    """A 1 x 1 convolution. In training its stride is taken before it, which is the same: oneDNN's
    gradient of a strided one is wrong, and written past its end, where channels are few and last
    (https://github.com/uxlfoundation/oneDNN/issues/6035)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        taken = F.avg_pool2d(x, 1, self.stride)  # a slice's gradient would not be channels last
        return F.conv2d(taken, self.weight, self.bias)


class Residual(nn.Module):
    """conv-BN-ReLU-conv-BN plus a shortcut, then ReLU (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1: nn.Module = BatchNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2: nn.Module = BatchNorm(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Conv2d | None = None if same else Shortcut(inputs, outputs, stride)
        self.bn3: nn.Module | None = None if same else BatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None and self.bn3 is not None:
            x = self.bn3(self.shortcut(x))
        return F.relu(x + y)


class ResidualNetwork(nn.Module):
    """Stem, one stage per width, global average, linear.

    >>> data = Schema(modality="vision", shape=(1, 8, 8), dtype="uint8", range=(0, 16),
    ...               classes=("a", "b"))
    >>> net = build(Architecture(widths=(4, 8)), data, Normalisation(mean=5.0, std=6.0))
    >>> net(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 2])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture, channels: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        widths = architecture.widths
        self.stem = nn.Conv2d(channels, widths[0], 3, architecture.stride, 1, bias=False)
        self.bn: nn.Module = BatchNorm(widths[0])
        layers: list[nn.Module] = []
        inputs = widths[0]
        for width, stride in zip(widths, architecture.stage_strides, strict=True):
            for block in range(architecture.blocks):
                layers.append(Residual(inputs, width, stride if block == 0 else 1))
                inputs = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        x = F.relu(self.bn(self.stem(x)))
        x = self.body(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def build(architecture: Architecture, data: Schema, norm: Normalisation) -> ResidualNetwork:
    """A freshly initialised network; seed torch before the call."""
    net = ResidualNetwork(architecture, data.shape[0], len(data.classes))
    net.mean.fill_(norm.mean)
    net.std.fill_(norm.std)
    # Channels last: 10 to 30 % less time a step than channels first, at every width of the family.
    last: ResidualNetwork = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return last


def folded(net: ResidualNetwork) -> ResidualNetwork:
    """A copy of a network in eval mode with each BatchNorm folded into its convolution."""
    copy = deepcopy(net).eval()
    copy.stem = _fused(copy.stem, copy.bn)
    copy.bn = nn.Identity()
    for block in copy.body:
        assert isinstance(block, Residual)  # noqa: S101 - the family's own layers
        block.conv1 = _fused(block.conv1, block.bn1)
        block.conv2 = _fused(block.conv2, block.bn2)
        block.bn1, block.bn2 = nn.Identity(), nn.Identity()
        if block.shortcut is not None and block.bn3 is not None:
            block.shortcut = _fused(block.shortcut, block.bn3)
            block.bn3 = nn.Identity()
    return copy


def _fused(convolution: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """One convolution that does the work of both."""
    assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101 - fold a network once
    return fuse_conv_bn_eval(convolution, norm)


def flops(net: nn.Module, data: Schema) -> int:
    """Floating-point operations of one row (a multiply-add counts as two)."""
    was = net.training
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *data.shape))
    net.train(was)
    return int(counter.get_total_flops())
