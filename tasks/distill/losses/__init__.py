"""One file per loss, found by its name; `params.yaml` gives the weights of their sum.

A loss is a function `loss(student, batch, rung) -> Tensor`: `student.logits` (N, classes),
`batch.labels` (N,), `batch.teacher.logits` (N, classes) of the model above for the very views that
the student saw, and the rung's parameters. A new loss is a new file here and its name in a rung.
"""

from __future__ import annotations

import importlib
from typing import Protocol

from torch import Tensor

from tasks.core.signal import Batch, Loss, Student
from tasks.distill.params import Rung


class LossFunction(Protocol):
    """What each file here defines as `loss`."""

    def __call__(self, student: Student, batch: Batch, rung: Rung, /) -> Tensor: ...


def weighted(rung: Rung) -> Loss:
    """The rung's weighted sum of losses."""
    terms: list[tuple[float, LossFunction]] = [
        (weight, importlib.import_module(f"{__name__}.{name}").loss)
        for name, weight in rung.losses.items()
    ]

    def total(student: Student, batch: Batch) -> Tensor:
        first, *rest = (weight * loss(student, batch, rung) for weight, loss in terms)
        for term in rest:
            first = first + term
        return first

    return total
