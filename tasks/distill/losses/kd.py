"""Distillation of softened logits (Hinton et al., 2015) at the rung's temperature."""

from __future__ import annotations

from torch import Tensor

from tasks.core.kd import kd
from tasks.core.signal import Batch, Student
from tasks.distill.params import Rung


def loss(student: Student, batch: Batch, rung: Rung) -> Tensor:
    """KL to the model above × temperature²."""
    return batch.mean(kd(student.logits, batch.teacher.logits, rung.temperature))
