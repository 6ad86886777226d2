"""A live teacher: a model asked for each batch as the student sees it, where a bank remembers.

A loss cannot tell the two apart. A network shows its layers too; a black box has logits alone.
Neither learns: a network is in eval mode, and no gradient is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.core.layers import Taps
from tasks.core.signal import Outputs, Signal


def live_network(net: nn.Module, layers: Collection[str] = ()) -> Signal:
    """Logits and the outputs of `layers` of `net`, which is put in eval mode for good."""
    net.eval()

    def signal(images: Tensor, _index: Tensor, _view: int, /) -> tuple[Outputs, ...]:
        # Somebody else's train() would let the teacher's BatchNorm drift with every batch.
        assert not any(module.training for module in net.modules()), "a teacher trains"  # noqa: S101
        with torch.no_grad(), Taps(net, layers) as taps:
            logits = net(images)
        assert not logits.requires_grad  # noqa: S101
        return (Outputs(logits, taps.features),)

    return signal


def live_scorer(score: Callable[[NDArray[np.generic]], NDArray[np.float32]]) -> Signal:
    """Logits of a black box, which `score` gives for raw images (N, C, H, W)."""

    def signal(images: Tensor, _index: Tensor, _view: int, /) -> tuple[Outputs, ...]:
        return (Outputs(torch.from_numpy(score(images.numpy()))),)

    return signal
