"""Cross-entropy with the hard labels: what the data says, whatever the teacher thinks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tasks.core.signal import Batch, Student
from tasks.core.tables import UNLABELLED
from tasks.distill.params import Rung

NEEDS = ("labels",)


def loss(student: Student, batch: Batch, _: Rung) -> Tensor:
    """Mean cross-entropy in nats; a row without a label says nothing."""
    each = F.cross_entropy(student.logits, batch.labels, reduction="none", ignore_index=UNLABELLED)
    return batch.mean(each)
