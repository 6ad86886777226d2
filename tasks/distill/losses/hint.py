"""Hints (FitNets, Romero et al., 2015): the student's layers are to foretell the teacher's.

A learned 1×1 convolution brings the student's channels to the teacher's; it trains along with the
student and is thrown away with the loss. Maps of two sizes meet at the smaller one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tasks.core.errors import ParamsError
from tasks.core.layers import Shapes, pairs, same_size
from tasks.core.signal import Batch, Student
from tasks.distill.params import Rung

NEEDS = ("layers",)


class Hint(nn.Module):
    """The mean squared error between projected student and teacher, averaged over the layers."""

    def __init__(self, layers: Mapping[str, str], shapes: Shapes) -> None:
        super().__init__()
        self.layers = layers
        self.projectors = nn.ModuleList(
            nn.Conv2d(_channels(ours, shapes.student), _channels(theirs, shapes.teacher), 1)
            for ours, theirs in layers.items()
        )

    def forward(self, student: Student, batch: Batch) -> Tensor:
        errors = []
        named = pairs(self.layers, student, batch.teacher)
        for project, (ours, theirs) in zip(self.projectors, named, strict=True):
            near, far = same_size(_map(ours), _map(theirs))
            errors.append(batch.mean((project(near) - far).square().mean((1, 2, 3))))
        return torch.stack(errors).mean()


def build(rung: Rung, shapes: Shapes) -> nn.Module:
    """A projector for each pair of `rung.layers`."""
    return Hint(rung.layers, shapes)


def _channels(layer: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if len(shapes[layer]) not in (1, 3):
        raise ParamsError(
            f"layers: '{layer}' gives neither (channels,) nor (channels, height, width), which is "
            "what hint reads; name another"
        )
    return shapes[layer][0]


def _map(features: Tensor) -> Tensor:
    """A vector (N, C) as a map of one pixel."""
    return features[:, :, None, None] if features.ndim == 2 else features
