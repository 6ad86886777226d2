"""Similarity-preserving distillation (Tung & Mori, 2019): rows alike for one are alike for both.

Of the named layers, flattened, or of the logits where none is named: a bank is enough then. A
similarity belongs to two rows, so sample weights cannot act here. Each row of similarities has unit
length, so no temperature applies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.core.layers import pairs
from tasks.core.signal import Batch, Student
from tasks.distill.params import Rung

USES = ("layers",)


def loss(student: Student, batch: Batch, rung: Rung) -> Tensor:
    """The mean squared difference of two similarity matrices, averaged over the layers."""
    losses = [
        (_similarities(ours) - _similarities(theirs)).square().mean()
        for ours, theirs in pairs(rung.layers, student, batch.teacher)
    ]
    return torch.stack(losses).mean()


def _similarities(features: Tensor) -> Tensor:
    """(N, N): inner products of rows, each row at unit length."""
    rows = features.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)
