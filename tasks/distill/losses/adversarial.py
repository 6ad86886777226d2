"""Adversarial distillation with robust soft labels (RSLAD, Zi et al., 2021), for a robust student.

Near each image x an x' is sought that takes the student furthest from what the teacher says of x;
the student learns the teacher's answer at both. The teacher is asked of x alone: a bank is enough.
`adversary.epsilon` and `adversary.step` are shares of the data's range, like the budgets of the
stress family. One step of 1.25 epsilon is the fast variant (Wong et al., 2020).

The search sees the student in eval mode: BatchNorm uses its running statistics, as it will when it
ships, and no half-made x' enters them. The student then learns from x' in its own mode, so that
clean and adversarial batches enter the statistics once each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks.core.kd import kd
from tasks.core.layers import Shapes, evaluating
from tasks.core.signal import Batch, Student
from tasks.distill.params import Adversary, Rung

NEEDS = ("adversary",)
ROBUST = 5 / 6  # of x' in the sum, as in the paper; the rest is for x


class Adversarial(nn.Module):
    """Nothing is learned here; `low` and `high` are raw values that no x' leaves."""

    def __init__(self, adversary: Adversary, temperature: float, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high, self.temperature = low, high, temperature
        self.epsilon = adversary.epsilon * (high - low)
        self.step, self.steps = adversary.step * (high - low), adversary.steps

    def forward(self, student: Student, batch: Batch) -> Tensor:
        """5/6 KL at x' plus 1/6 KL at x, both × temperature²."""
        assert student.forward is not None  # noqa: S101 - the trainer gives it
        signal = batch.teacher.logits
        near = self.worst(student, batch.images, signal)
        attacked = kd(student.forward(near), signal, self.temperature)
        clean = kd(student.logits, signal, self.temperature)
        return batch.mean(ROBUST * attacked + (1 - ROBUST) * clean)

    def worst(self, student: Student, images: Tensor, signal: Tensor) -> Tensor:
        """x' within epsilon of `images`, by ascent from a random start (torch's own generator)."""
        forward, net = student.forward, student.net
        assert forward is not None and net is not None  # noqa: S101, PT018
        noise = self.epsilon * (2 * torch.rand_like(images) - 1)
        near = self.within(images + noise, images)
        with evaluating(net):
            for _ in range(self.steps):
                near.requires_grad_()
                divergence = kd(forward(near), signal, self.temperature).sum()
                (slope,) = torch.autograd.grad(divergence, near)  # of x' alone, of no weight
                near = self.within(near.detach() + self.step * slope.sign(), images)
        return near

    def within(self, near: Tensor, images: Tensor) -> Tensor:
        """`near`, no further than epsilon from `images` and in the data's range."""
        near = torch.clamp(near, images - self.epsilon, images + self.epsilon)
        return near.clamp(self.low, self.high)


def build(rung: Rung, shapes: Shapes) -> nn.Module:
    """For the rung's adversary and the range of the data."""
    assert rung.adversary is not None  # noqa: S101 - `NEEDS` holds that
    return Adversarial(rung.adversary, rung.temperature, *shapes.range)
