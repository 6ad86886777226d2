"""Cross-entropy with the hard labels: what the data says, whatever the teacher thinks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tasks.core.trainer import Batch
from tasks.distill.params import Rung


def loss(logits: Tensor, batch: Batch, _: Rung) -> Tensor:
    """Mean cross-entropy in nats."""
    return F.cross_entropy(logits, batch.labels)
