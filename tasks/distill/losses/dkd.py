"""Decoupled distillation (Zhao et al., 2022): the right class, and the wrong ones among themselves.

Plain distillation gives the second part the weight 1 - p, p being the teacher's belief in the right
class: the surer the teacher, the less it says. Here each part has a weight of its own, `dkd.alpha`
and `dkd.beta`. For a row without a label the teacher's first choice stands in as the right class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.core.signal import Batch, Student
from tasks.core.tables import UNLABELLED
from tasks.distill.params import Rung

USES = ("dkd",)


def loss(student: Student, batch: Batch, rung: Rung) -> Tensor:
    """alpha × TCKD + beta × NCKD, each times temperature²."""
    temperature, signal = rung.temperature, batch.teacher.logits
    target = torch.where(batch.labels == UNLABELLED, signal.argmax(1), batch.labels)
    right = F.one_hot(target, signal.shape[1]).bool()
    ours, theirs = (_parts(logits / temperature, right) for logits in (student.logits, signal))
    tckd, nckd = (
        F.kl_div(our, their, reduction="none", log_target=True).sum(1)
        for our, their in zip(ours, theirs, strict=True)
    )
    return batch.mean(rung.dkd.alpha * tckd + rung.dkd.beta * nckd) * temperature**2


def _parts(logits: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of right and wrong (N, 2), and of each wrong class if wrong."""
    likely = F.log_softmax(logits, dim=1)
    wrong = likely[~right].reshape(len(logits), -1)
    both = torch.stack([likely[right], wrong.logsumexp(1)], dim=1)
    return both, F.log_softmax(wrong, dim=1)
