"""The search for the worst image near each one, while a network trains: its own hardest lesson.

Projected gradient ascent from a random start (Madry et al., 2018), by steps that grow shorter. One
step of 1.25 epsilon is the fast variant, FGSM-RS (Wong et al., 2020). A network that is shown few
steps may learn to fool these alone (catastrophic overfitting): so validation asks by `harder` ones,
and one step that need not stay within epsilon, N-FGSM (de Jorge et al., 2022), does not tempt it.
Attacks on what ships are another matter: see the adversarial family of stress.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from tasks.core.layers import evaluating
from tasks.core.params import Section
from tasks.core.signal import Student


class Adversary(Section):
    """`epsilon` and `step` are shares of the data's range, as in `stress.adversarial`: 8 of 255 is
    0.0314. `step` is the first of `steps`, which fall evenly towards nothing. Without
    `project`, only the data's range holds them."""

    epsilon: float = Field(gt=0, le=1)
    steps: int = Field(default=10, ge=1, le=1000)
    step: float = Field(gt=0, le=2)
    project: bool = True


@dataclass(frozen=True)
class Search:
    """An adversary in raw values; no image that it finds leaves `low` to `high`, and none is
    further than epsilon from its row if it projects."""

    epsilon: float
    step: float
    steps: int
    low: float
    high: float
    project: bool = True

    def worst(
        self, student: Student, images: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """x' near raw `images` (N, C, H, W), by ascent of `objective` (logits to a
        number) from a random start (torch's own generator).

        The search sees the student in eval mode: BatchNorm uses its running statistics, as it will
        when it ships, and no half-made x' enters them.
        """
        forward, net = student.forward, student.net
        assert forward is not None and net is not None  # noqa: S101, PT018 - the trainer gives them
        noise = self.epsilon * (2 * torch.rand_like(images) - 1)
        near = self.within(images + noise, images)
        with evaluating(net):
            for done in range(self.steps):
                near.requires_grad_()
                (slope,) = torch.autograd.grad(objective(forward(near)), near)  # of x' alone
                step = self.step * (1 - done / self.steps)
                near = self.within(near.detach() + step * slope.sign(), images)
        return near

    def within(self, near: Tensor, images: Tensor) -> Tensor:
        """`near` in the data's range, and no further than epsilon from `images` if it projects."""
        if self.project:
            near = torch.clamp(near, images - self.epsilon, images + self.epsilon)
        return near.clamp(self.low, self.high)


def search(adversary: Adversary, low: float, high: float) -> Search:
    """`adversary` for data that lie between `low` and `high`.

    >>> search(Adversary(epsilon=0.5, step=0.25), 0.0, 16.0).epsilon
    8.0
    """
    width = high - low
    epsilon, step = adversary.epsilon * width, adversary.step * width
    return Search(epsilon, step, adversary.steps, low, high, adversary.project)


def harder(adversary: Adversary) -> Adversary:
    """The same epsilon, sought by ten steps from twice its length: it finds about what Auto-PGD
    does in twenty, also where a network has learned to fool the steps that it was shown.

    >>> harder(Adversary(epsilon=0.1, steps=2, step=0.2)).steps
    10
    """
    return Adversary(epsilon=adversary.epsilon, steps=10, step=2 * adversary.epsilon)
