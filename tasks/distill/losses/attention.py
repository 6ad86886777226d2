"""Attention transfer (Zagoruyko & Komodakis, 2017): look where the teacher looks.

A map's attention is the sum of its squared activations over channels, at unit length over places;
channels need not match, and maps of two sizes meet at the smaller one. It can do harm between
unlike architectures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.core.errors import ParamsError
from tasks.core.layers import pairs, same_size
from tasks.core.signal import Batch, Student
from tasks.distill.params import Rung

NEEDS = ("layers",)


def loss(student: Student, batch: Batch, rung: Rung) -> Tensor:
    """The squared distance between two attention maps, averaged over the layers: between 0 and 2,
    summed over places, never averaged (which would silently divide by their number)."""
    distances = []
    for ours, theirs in pairs(rung.layers, student, batch.teacher):
        if ours.ndim != 4 or theirs.ndim != 4:
            raise ParamsError(
                "layers: attention reads maps (rows, channels, height, width), and was given "
                f"{tuple(ours.shape)} and {tuple(theirs.shape)}; name convolutional layers"
            )
        near, far = same_size(_attention(ours), _attention(theirs))
        apart = F.normalize(near.flatten(1), dim=1) - F.normalize(far.flatten(1), dim=1)
        distances.append(batch.mean(apart.square().sum(1)))
    return torch.stack(distances).mean()


def _attention(features: Tensor) -> Tensor:
    """(N, C, H, W) to (N, 1, H, W)."""
    return features.square().sum(1, keepdim=True)
