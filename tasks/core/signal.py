"""The seam between a loss and whoever teaches: what a model said of a batch, live or from a bank.

A loss sees outputs and never knows where they came from; a signal knows which rows and which view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Outputs:
    """`logits` (N, classes) of a batch, and `features`: layer name -> what left it."""

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Student(Outputs):
    """The student's outputs; `forward` asks it again, of other images (N, C, H, W), and `net` is
    the network that then answers, whose mode a loss may change for a while."""

    forward: Callable[[Tensor], Tensor] | None = None
    net: nn.Module | None = None


class Signal(Protocol):
    """What the models above say of view `view` of rows `index` (N,); `images` are those views.

    The first is the model that the rung learns from; a dense chain adds the ones above it.
    """

    def __call__(self, images: Tensor, index: Tensor, view: int, /) -> tuple[Outputs, ...]: ...


@dataclass(frozen=True)
class Batch:
    """What a loss sees beside the student: `images` (N, C, H, W) as the student saw them, `labels`
    (N,), -1 where a row has none, `above`: the models above, nearest first, and `weights` (N,) of
    mean 1, or None."""

    images: Tensor
    labels: Tensor
    above: tuple[Outputs, ...] = ()
    weights: Tensor | None = None

    @property
    def teacher(self) -> Outputs:
        """What the model that the rung learns from says."""
        return self.above[0]

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean over rows of one value per row (N,).

        >>> import torch
        >>> batch = Batch(torch.zeros(2, 1), torch.zeros(2), weights=torch.tensor([0.5, 1.5]))
        >>> float(batch.mean(torch.tensor([2.0, 4.0])))
        3.5
        """
        return (values if self.weights is None else values * self.weights).mean()


Loss = Callable[[Student, Batch], Tensor]
