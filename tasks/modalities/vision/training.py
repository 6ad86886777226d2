"""Training rows for torch: images and labels as tensors, and their fixed views.

What teach, distill and quantize share, so that a bank's view and a student's view are one function.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.core.metrics import accuracy
from tasks.core.tables import Table
from tasks.core.trainer import Rows
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.views import Views, apply, row_keys


def tensors(table: Table) -> Rows:
    """A table's images and labels as tensors that share its memory."""
    return Rows(
        torch.from_numpy(np.ascontiguousarray(table.images)), torch.from_numpy(table.labels)
    )


def viewer(table: Table, views: Views) -> Callable[[Tensor, NDArray[np.int64], int], Tensor]:
    """`view(images, index, k)` for the trainer: view k of rows `index` of `table`."""
    keys = row_keys(table.rows)
    return lambda images, index, k: apply(images, keys[index], k, views)


def viewed(
    views: Views,
) -> Callable[[NDArray[np.generic], NDArray[np.str_], int], NDArray[np.generic]]:
    """`viewed(images, rows, k)` for the bank: the same views, from row ids, in NumPy."""

    def view(images: NDArray[np.generic], rows: NDArray[np.str_], k: int) -> NDArray[np.generic]:
        tensor = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
        out: NDArray[np.generic] = apply(tensor, row_keys(rows), k, views).numpy()
        return out

    return view


def validator(net: nn.Module, val: Table) -> Callable[[], float]:
    """Accuracy of `net` on validation rows, whenever it is called."""
    score = network_scorer(net)
    return lambda: accuracy(score(val.images), val.labels)
