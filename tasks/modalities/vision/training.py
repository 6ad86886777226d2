"""Training rows for vision: their fixed views, and validation while a network trains.

What teach, distill and quantize share, so that a bank's view and a student's view are one function.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tasks.core.metrics import accuracy
from tasks.core.rows import Rows, View
from tasks.core.tables import Table
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.views import Views, apply


def viewer(rows: Rows, views: Views) -> View:
    """`view(images, index, k)` for trainer and bank: view k of rows `index`."""
    return lambda images, index, k: apply(images, rows.keys[index], k, views)


def validator(net: nn.Module, val: Table) -> Callable[[], float]:
    """Accuracy of `net` on validation rows, whenever it is called."""
    score = network_scorer(net)
    return lambda: accuracy(score(val.images), val.labels)
