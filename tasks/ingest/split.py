"""Splits by content: the SHA-256 of a row's pixels decides where it goes, now and forever.

The thresholds are constants of `params.yaml` and never depend on how many rows there are, in all or
in a class, so a growing snapshot moves no row. The label is not hashed: the same image under two
labels falls on one side, where validation sees both.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tasks.core.errors import DataError
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

    Where the test split is given, what is not in it is train or val.

    >>> assign(["0" * 64, "f" * 64], Shares(train=0.6, val=0.15, test=0.25)).tolist()
    ['train', 'test']
    >>> assign(["0" * 64, "f" * 64], Shares(train=0.9, val=0.1, test="given")).tolist()
    ['train', 'val']
    """
    place = np.array([int(row[-13:], 16) / 2**52 for row in rows])
    edges = [shares.train] if shares.test == "given" else [shares.train, shares.train + shares.val]
    return np.array(SPLITS)[np.searchsorted(np.array(edges), place, side="right")]


def sides(rows: list[str], shares: Shares, given: NDArray[np.bool_] | None) -> NDArray[np.str_]:
    """The split of each row; "" for a row outside the source's own test split that is also in it.

    `given` (N,): the rows of that test split, all of which stay in it; None where the source has
    none. A `DataError` if `shares` and source do not agree on who makes the test split.
    """
    if given is None:
        if shares.test == "given":
            raise DataError(
                "data/raw: has no test split of its own; write a share as data.split.test"
            )
        return assign(rows, shares)
    if shares.test != "given":
        raise DataError("data/raw: has a test split of its own; write data.split.test: given")
    ids = np.array(rows)
    side = np.where(np.isin(ids, ids[given]), "", assign(rows, shares))
    side[given] = "test"
    return side
