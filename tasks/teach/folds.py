"""Out-of-fold teachers: a training row's banked logits come from a network that never saw it.

A network is over-confident about the rows it was trained on, most of all where they are few, and
then its soft labels say little more than the labels do (cross-fitting; Dao et al. 2021). The
teacher that is evaluated stays the one that was trained on all rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.core.errors import DataError
from tasks.core.rows import Rows
from tasks.core.stored import Stored
from tasks.modalities.vision.scorers import Scorer

RowScorer = Callable[[NDArray[np.generic], NDArray[np.int64]], NDArray[np.float32]]


def fold_of(keys: NDArray[np.uint64], folds: int) -> NDArray[np.int64]:
    """The fold (N,) of each row, by its content: a snapshot that grows moves no row.

    The key's last bit stays out, since it decides which rows are mirrored first.

    >>> fold_of(np.array([0, 1, 2, 3, 4], dtype=np.uint64), 2).tolist()
    [0, 0, 1, 1, 0]
    """
    return ((keys >> np.uint64(1)) % np.uint64(folds)).astype(np.int64)


def check_folds(fold: NDArray[np.int64], folds: int, batch: int) -> None:
    """Refuse, before anything trains, folds that leave a network less than one batch."""
    counts = np.bincount(fold, minlength=folds)
    if counts.min() == 0:
        raise DataError(
            f"teach: folds {folds} are too many for {len(fold)} training rows; lower teach.folds"
        )
    least = len(fold) - int(counts.max())
    if least < batch:
        raise DataError(
            f"teach: folds {folds} leave {least} rows to a network, less than a batch of {batch}; "
            "raise teach.folds or lower teach.training.batch"
        )


def chosen(rows: Rows, keep: NDArray[np.bool_]) -> Rows:
    """The rows where `keep` (N,) holds; their images stay where they are."""
    index = np.flatnonzero(keep)
    images = cast(Stored, Chosen(rows.images, torch.from_numpy(index)))
    digest = hashlib.sha256(rows.digest.encode() + index.tobytes()).hexdigest()
    return replace(
        rows, images=images, labels=rows.labels[index], keys=rows.keys[index], digest=digest
    )


@dataclass(frozen=True)
class Chosen:
    """Some rows of `images`, looked up one batch at a time."""

    images: Stored
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, at: Tensor | slice) -> Tensor:
        return self.images[self.index[at]]


def out_of_fold(scorers: Sequence[Scorer], fold: NDArray[np.int64]) -> RowScorer:
    """Logits of `images` of rows `index`, each from the scorer of its own fold, which never saw
    it."""

    def logits(images: NDArray[np.generic], index: NDArray[np.int64]) -> NDArray[np.float32]:
        mine = fold[index]
        order = np.argsort(mine, kind="stable")
        found = [scorers[f](images[mine == f]) for f in np.unique(mine)]
        result = np.concatenate(found)
        return result[np.argsort(order, kind="stable")]

    return logits
