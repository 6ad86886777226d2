"""Densely guided distillation (Son et al., 2021): every model above teaches, not the nearest alone.

The rung above must hand on the signals that it learned from itself (`hand_on` in its section).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.core.errors import ParamsError
from tasks.core.kd import kd
from tasks.core.signal import Batch, Student
from tasks.distill.params import Rung

NEEDS = ("handed_on",)


def loss(student: Student, batch: Batch, rung: Rung) -> Tensor:
    """KL to each model above × temperature², averaged over the models."""
    if len(batch.above) < 2:
        raise ParamsError(
            "dense: one model teaches, and its bank hands nothing on; set hand_on in the rung "
            "above, or use kd"
        )
    each = [kd(student.logits, above.logits, rung.temperature) for above in batch.above]
    return batch.mean(torch.stack(each).mean(0))
