"""Distillation of softened logits (Hinton et al., 2015) at the rung's temperature."""

from __future__ import annotations

from torch import Tensor

from tasks.core.kd import kd
from tasks.core.trainer import Batch
from tasks.distill.params import Rung


def loss(logits: Tensor, batch: Batch, rung: Rung) -> Tensor:
    """KL to the signal × temperature²."""
    assert batch.signal is not None  # noqa: S101 - a rung always has a bank above it
    return kd(logits, batch.signal, rung.temperature)
