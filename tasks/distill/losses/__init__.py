"""One file per loss, found by its name; `params.yaml` gives the weights of their sum.

A loss is a function `loss(logits, batch, rung) -> Tensor`: `logits` (N, classes) of the student,
`batch.labels` (N,), `batch.signal` (N, classes) of the model above for the very views that the
student saw, and the rung's parameters. A new loss is a new file here and its name in a rung.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tasks.core.errors import ParamsError
from tasks.core.trainer import Batch, Loss
from tasks.distill.params import Rung


class LossFunction(Protocol):
    """What each file here defines as `loss`."""

    def __call__(self, logits: Tensor, batch: Batch, rung: Rung, /) -> Tensor: ...


def available() -> list[str]:
    """The names of all losses: the files of this folder.

    >>> available()
    ['cross_entropy', 'kd']
    """
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")


def weighted(rung: Rung, name: str) -> Loss:
    """The rung's weighted sum of losses; an unknown name is a `ParamsError` that suggests one."""
    known = available()
    for loss in rung.losses:
        if loss not in known:
            near = difflib.get_close_matches(loss, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise ParamsError(f"distill.rungs.{name}.losses: no loss '{loss}'; {hint}")
    terms: list[tuple[float, LossFunction]] = [
        (weight, importlib.import_module(f"{__name__}.{loss}").loss)
        for loss, weight in rung.losses.items()
    ]

    def total(logits: Tensor, batch: Batch) -> Tensor:
        first, *rest = (weight * loss(logits, batch, rung) for weight, loss in terms)
        for term in rest:
            first = first + term
        return first

    return total
