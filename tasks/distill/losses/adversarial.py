"""Adversarial distillation with robust soft labels (RSLAD, Zi et al., 2021), for a robust student.

Near each image x an x' is sought that takes the student furthest from what the teacher says of x;
the student learns the teacher's answer at both. The teacher is asked of x alone: a bank is enough.
It should be robust itself (`teach.adversary`): what it says of x is all that the student learns.
The student learns from x' in its own mode, so that clean and adversarial batches enter BatchNorm's
statistics once each.
"""

from __future__ import annotations

from torch import Tensor, nn

from tasks.core.adversary import Search, search
from tasks.core.kd import kd
from tasks.core.layers import Shapes
from tasks.core.signal import Batch, Student
from tasks.distill.params import Rung

NEEDS = ("adversary",)
SHARE = 5 / 6  # of the found images in the loss; the rest is that of the rows


class Adversarial(nn.Module):
    """Nothing is learned here."""

    def __init__(self, search: Search, temperature: float) -> None:
        super().__init__()
        self.search, self.temperature = search, temperature

    def forward(self, student: Student, batch: Batch) -> Tensor:
        """5/6 KL at x' plus 1/6 KL at x, both × temperature²."""
        assert student.forward is not None  # noqa: S101 - the trainer gives it
        signal = batch.teacher.logits
        near = self.worst(student, batch.images, signal)
        attacked = kd(student.forward(near), signal, self.temperature)
        clean = kd(student.logits, signal, self.temperature)
        return batch.mean(SHARE * attacked + (1 - SHARE) * clean)

    def worst(self, student: Student, images: Tensor, signal: Tensor) -> Tensor:
        """x' near `images`, where the student is furthest from `signal`."""
        return self.search.worst(
            student, images, lambda logits: kd(logits, signal, self.temperature).sum()
        )


def build(rung: Rung, shapes: Shapes) -> nn.Module:
    """For the rung's adversary and the range of the data."""
    assert rung.adversary is not None  # noqa: S101 - `NEEDS` holds that
    return Adversarial(search(rung.adversary, *shapes.range), rung.temperature)
