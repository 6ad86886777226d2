"""Correlation instead of divergence (DIST, Huang et al., 2022): relations, whatever their scale.

1 - Pearson's r of student and teacher, within each row over classes and within each class over
rows. The second part relates the rows of a batch to each other, so sample weights act on the first
alone. There is no factor of temperature²: a correlation does not shrink as the temperature rises,
so the factor of the authors' code would make its gradient grow with T² instead of keeping its size.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tasks.core.signal import Batch, Student
from tasks.distill.params import Rung

SMALL = 1e-3  # the least length of a row about its mean, which is about 0.3 for ten classes


def loss(student: Student, batch: Batch, rung: Rung) -> Tensor:
    """The inter-class part plus the intra-class part, each between 0 and 2."""
    ours, theirs = (
        F.softmax(logits.float() / rung.temperature, dim=1)
        for logits in (student.logits, batch.teacher.logits)
    )
    return batch.mean(_distance(ours, theirs)) + _distance(ours.T, theirs.T).mean()


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """1 - Pearson's correlation of each row of two matrices; 1 where one of them is constant.

    `SMALL` bounds the gradient there: logits in bfloat16 are often equal.
    """
    ours, theirs = (x - x.mean(1, keepdim=True) for x in (first, second))
    return 1 - F.cosine_similarity(ours, theirs, dim=1, eps=SMALL)
