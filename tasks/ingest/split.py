"""Splits by content: the SHA-256 of a row's pixels decides where it goes, now and forever.

The thresholds are constants of `params.yaml` and never depend on how many rows there are, in all or
in a class, so a growing snapshot moves no row. The label is not hashed: the same image under two
labels falls on one side, where validation sees both.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tasks.core.tables import SPLITS
from tasks.ingest.params import Shares


def row_id(pixels: NDArray[np.generic]) -> str:
    """SHA-256 of one image's dtype, shape and raw values.

    >>> row_id(np.zeros((1, 2, 2), np.uint8)) == row_id(np.zeros((1, 2, 2), np.float32))
    False
    """
    header = f"{pixels.dtype.str}{pixels.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def assign(rows: list[str], shares: Shares) -> NDArray[np.str_]:
    """The split of each row id. Its last 52 bits are a uniform number in [0, 1).

    >>> assign(["0" * 64, "f" * 64], Shares(train=0.6, val=0.15, test=0.25)).tolist()
    ['train', 'test']
    """
    place = np.array([int(row[-13:], 16) / 2**52 for row in rows])
    edges = np.array([shares.train, shares.train + shares.val])
    return np.array(SPLITS)[np.searchsorted(edges, place, side="right")]
