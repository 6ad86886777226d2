"""Attention transfer (Zagoruyko & Komodakis, 2017): look where the teacher looks.

A map's attention is the sum of its squared activations over channels, at unit length over places;
channels need not match, and maps of two sizes meet at the smaller one. It can do harm between
unlike architectures.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.core.errors import ParamsError
from tasks.core.layers import Shapes, pairs, same_size
from tasks.core.signal import Batch, Student
from tasks.distill.params import Rung

NEEDS = ("layers",)


class Attention(nn.Module):
    """The squared distance between two attention maps, averaged over the layers: between 0 and 2,
    summed over places, never averaged (which would silently divide by their number)."""

    def __init__(self, layers: Mapping[str, str]) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, student: Student, batch: Batch) -> Tensor:
        distances = []
        for ours, theirs in pairs(self.layers, student, batch.teacher):
            near, far = same_size(_attention(ours), _attention(theirs))
            apart = F.normalize(near.flatten(1), dim=1) - F.normalize(far.flatten(1), dim=1)
            distances.append(batch.mean(apart.square().sum(1)))
        return torch.stack(distances).mean()


def build(rung: Rung, shapes: Shapes) -> nn.Module:
    """Every pair of `rung.layers` must be maps."""
    for ours, theirs in rung.layers.items():
        for layer, shape in ((ours, shapes.student[ours]), (theirs, shapes.teacher[theirs])):
            if len(shape) != 3:
                raise ParamsError(
                    f"layers: '{layer}' gives no map, and attention reads maps (channels, height, "
                    "width); name a convolutional layer"
                )
    return Attention(rung.layers)


def _attention(features: Tensor) -> Tensor:
    """(N, C, H, W) to (N, 1, H, W)."""
    return features.square().sum(1, keepdim=True)
