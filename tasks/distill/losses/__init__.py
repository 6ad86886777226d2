"""One file per loss, found by its name; `params.yaml` gives the weights of their sum.

A loss is a function `loss(student, batch, rung) -> Tensor`: `student.logits` (N, classes),
`batch.labels` (N,), `batch.teacher.logits` (N, classes) of the model above for the very views that
the student saw, and the rung's parameters. It returns one number; `batch.mean` takes the mean over
rows with their weights. A loss that learns something itself, or needs shapes or the data's range,
defines `build(rung, shapes) -> nn.Module` instead, called with `(student, batch)`.

`NEEDS` in its file names what a rung must have for it: `layers`, `adversary`, `labels` or
`handed_on`; `USES` what it reads where it is there. A new loss is a new file here and its name in a
rung. No file here knows where a signal comes from.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from tasks.core.layers import Shapes
from tasks.core.signal import Batch, Loss, Student
from tasks.distill.params import Rung, loss_file


class LossFunction(Protocol):
    """What most files here define as `loss`."""

    def __call__(self, student: Student, batch: Batch, rung: Rung, /) -> Tensor: ...


class Weighted(nn.Module):
    """The rung's weighted sum of losses; what they learn themselves are its parameters."""

    def __init__(self, rung: Rung, shapes: Shapes) -> None:
        super().__init__()
        self.learned = nn.ModuleDict()
        self.terms: list[tuple[float, Loss]] = []
        for name, weight in rung.losses.items():
            file = loss_file(name)
            if hasattr(file, "build"):
                self.learned[name] = file.build(rung, shapes)
                self.terms.append((weight, self.learned[name]))
            else:
                self.terms.append((weight, _of(file.loss, rung)))

    def forward(self, student: Student, batch: Batch) -> Tensor:
        first, *rest = (weight * loss(student, batch) for weight, loss in self.terms)
        for term in rest:
            first = first + term
        return first


def _of(loss: LossFunction, rung: Rung) -> Loss:
    return lambda student, batch: loss(student, batch, rung)
