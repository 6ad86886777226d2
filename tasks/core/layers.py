"""The layers of a network by name: what leaves them, and of which shape.

A white-box loss reads layers of student and teacher in pairs. Nothing here changes a network: hooks
go when a `Taps` ends, and a mode that was changed comes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from tasks.core.errors import ParamsError
from tasks.core.signal import Outputs

LISTED = 80  # layers that an error names at most


class Taps:
    """While entered, `features` holds what left each named layer in the latest forward pass.

    Names are those of `named_modules()`; one that is none is a `ParamsError`. A layer that runs
    twice in one pass shows its last output.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with Taps(net, ["0"]) as taps:
    ...     logits = net(torch.zeros(4, 2))
    >>> taps.features["0"].shape
    torch.Size([4, 3])
    """

    def __init__(self, net: nn.Module, names: Iterable[str]) -> None:
        self._net, self._names = net, tuple(names)
        check_layers(net, self._names, "layers")
        self._latest: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Taps:
        for name in self._names:
            module = self._net.get_submodule(name)
            self._handles.append(module.register_forward_hook(self._keeping(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def features(self) -> dict[str, Tensor]:
        """Layer -> its output; a copy, so that another forward pass does not change it."""
        return dict(self._latest)

    def _keeping(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise ParamsError(
                    f"layers: '{name}' gives a {type(output).__name__}, no tensor; name another"
                )
            self._latest[name] = output

        return keep


def check_layers(net: nn.Module, names: Iterable[str], where: str) -> None:
    """Raise a `ParamsError` that lists the layers of `net` if one of `names` is none of them."""
    known = [name for name, _ in net.named_modules() if name]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            more = ", ..." if len(known) > LISTED else ""
            raise ParamsError(
                f"{where}: no layer '{name}'; {hint}there are {', '.join(known[:LISTED])}{more}"
            )


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """`net` in eval mode: BatchNorm uses its running statistics and leaves them as they are.
    Each module's own mode comes back afterwards, also that of one which was frozen."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class Shapes:
    """What a loss that learns something is built for: layer -> shape of one row's output, (C, H, W)
    or (C,), of student and teacher, and the closed `range` of raw values."""

    range: tuple[float, float]
    student: Mapping[str, tuple[int, ...]]
    teacher: Mapping[str, tuple[int, ...]]


def layer_shapes(
    net: nn.Module, names: Iterable[str], shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Layer -> shape of its output for one row of `shape`, without the batch. A network without
    weights, on the device `meta`, has the same ones."""
    weight = next(net.parameters(), None)
    device = None if weight is None else weight.device
    with evaluating(net), torch.no_grad(), Taps(net, names) as taps:
        net(torch.zeros(1, *shape, device=device))
    return {name: tuple(output.shape[1:]) for name, output in taps.features.items()}


def pairs(
    layers: Mapping[str, str], student: Outputs, teacher: Outputs
) -> list[tuple[Tensor, Tensor]]:
    """What left each student's layer and the teacher's that it is to follow, in float32; the logits
    of both where no layer is named."""
    if not layers:
        return [(student.logits.float(), teacher.logits.float())]
    return [
        (student.features[ours].float(), teacher.features[theirs].float())
        for ours, theirs in layers.items()
    ]


def same_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two feature maps (N, C, H, W) at the smaller height and width of both, by adaptive average
    pooling: neither is invented where it has no values.

    >>> [tuple(x.shape) for x in same_size(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 8))]
    [(1, 2, 2, 4), (1, 3, 2, 4)]
    """
    height, width = (min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
    return (
        F.adaptive_avg_pool2d(first, (height, width)),
        F.adaptive_avg_pool2d(second, (height, width)),
    )
