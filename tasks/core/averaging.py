"""A moving average of weights: what is validated and kept where a training asks for it.

Holds a copy beside the network and never touches gradients. The decay warms up, so that a short
training is not weighed down by its first weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The moving average of a network's parameters and floating buffers (BatchNorm's included).

    >>> net = nn.Linear(1, 1, bias=False)
    >>> average = Average(net, decay=0.9)
    >>> _ = net.weight.data.add_(11.0)
    >>> average.update(step=0)  # warming up: decay 1/10
    >>> was = net.weight.item()
    >>> with average.shown():
    ...     round(was - net.weight.item(), 4)
    1.1
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = [
            value.detach()
            for value in (*net.parameters(), *net.buffers())
            if value.is_floating_point()
        ]
        self.values = [value.clone() for value in self._live]

    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(self.values, self._live, step)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the network have the averaged weights for the length of the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and the averaged ones."""
        for live, kept in zip(self._live, self.values, strict=True):
            held: Tensor = live.clone()
            live.copy_(kept)
            kept.copy_(held)
