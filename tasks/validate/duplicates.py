"""Exact and near duplicates, within and across splits.

Splits are walked from the most protected to the least: test, val, train. A row is compared with the
rows before it, so of two alike rows the less protected one, or the later one, is the copy. Memory
stays O(block x rows). Nothing here decides what becomes of a copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tasks.core.tables import Table

PROTECTED_FIRST = ("test", "val", "train")
BLOCK_VALUES = 4_000_000  # similarities held at once: 16 MB
SKETCH = 64  # dimensions of the filter
SAMPLE = 512  # rows that the filter's basis is taken from
SLACK = 1e-4  # float32 rounding of the filter; a candidate is decided by the full product

Floats = NDArray[np.float32]
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """Exact duplicates of one split, by content.

    `content`: digest of each row's pixels. `first`: position of the first row with that content.
    `elsewhere`: the most protected other split that holds it, or "". `conflicting`: the content
    occurs in this split under another label too. `misnamed`: the row id belongs to more than one
    content, or the content to more than one id.
    """

    content: NDArray[np.str_]
    first: Positions
    elsewhere: NDArray[np.str_]
    conflicting: NDArray[np.bool_]
    misnamed: NDArray[np.bool_]

    @property
    def later(self) -> NDArray[np.bool_]:
        """Rows whose content came before in this split."""
        return np.asarray(self.first != np.arange(len(self.first)))


@dataclass(frozen=True)
class Near:
    """Near duplicates of one split. `similarity` (0 where there is none), `split` and `position`
    describe the most similar row of a more protected split; `pairs` counts, per split, the pairs
    with its rows, and within this split the pairs with earlier rows."""

    similarity: NDArray[np.float64]
    split: NDArray[np.str_]
    position: Positions
    pairs: dict[str, int]


def exact(tables: Mapping[str, Table]) -> dict[str, Copies]:
    """Rows with the same pixels, per split."""
    content = {name: _digests(table) for name, table in tables.items()}
    ids: dict[str, set[str]] = {}
    contents: dict[str, set[str]] = {}
    for name, table in tables.items():
        for row, digest in zip(table.rows.tolist(), content[name].tolist(), strict=True):
            ids.setdefault(digest, set()).add(row)
            contents.setdefault(row, set()).add(digest)
    found = {}
    for name, table in tables.items():
        others = [s for s in PROTECTED_FIRST if s in tables and s != name]
        digests = content[name]
        elsewhere = np.full(len(table), "", dtype="U5")
        for other in reversed(others):
            elsewhere[np.isin(digests, content[other])] = other
        labels: dict[str, set[int]] = {}
        first: dict[str, int] = {}
        for position, (digest, label) in enumerate(
            zip(digests.tolist(), table.labels.tolist(), strict=True)
        ):
            labels.setdefault(digest, set()).add(label)
            first.setdefault(digest, position)
        rows = table.rows.tolist()
        found[name] = Copies(
            content=digests,
            first=np.array([first[d] for d in digests.tolist()], dtype=np.int64),
            elsewhere=elsewhere,
            conflicting=np.array([len(labels[d]) > 1 for d in digests.tolist()], dtype=bool),
            misnamed=np.array(
                [
                    len(ids[d]) > 1 or len(contents[r]) > 1
                    for r, d in zip(rows, digests.tolist(), strict=True)
                ],
                dtype=bool,
            ),
        )
    return found


def near(
    tables: Mapping[str, Table], copies: Mapping[str, Copies], threshold: float
) -> dict[str, Near]:
    """Pairs of different images whose centred pixels have a cosine of at least `threshold`.

    Constant images and images with values that are not finite are like nothing. Similarities count
    to five decimals, so that they do not depend on the order of a float32 sum.
    """
    names = [s for s in PROTECTED_FIRST if s in tables]
    unit = np.concatenate([_centred(tables[s]) for s in names])
    sketch = _sketch(unit)
    _, content = np.unique(np.concatenate([copies[s].content for s in names]), return_inverse=True)
    starts = np.cumsum([0, *(len(tables[s]) for s in names)])
    found = {}
    for place, name in enumerate(names):
        own, end = int(starts[place]), int(starts[place + 1])
        similarity, partner = np.zeros(end - own), np.full(end - own, -1, dtype=np.int64)
        pairs = dict.fromkeys(names[: place + 1], 0)
        for start, stop in _blocks(own, end):
            rows, others = _candidates(sketch, start, stop, threshold - SLACK)
            if not len(rows):
                continue
            alike = np.round((unit[rows] @ unit[others].T).astype(np.float64), 5)
            alike[others >= rows[:, None]] = 0.0
            alike[content[rows][:, None] == content[others]] = 0.0
            alike[alike < threshold] = 0.0
            for other, (a, b) in zip(names, pairwise(starts), strict=False):
                if other in pairs:
                    pairs[other] += int(np.count_nonzero(alike[:, (others >= a) & (others < b)]))
            before = np.flatnonzero(others < own)
            if len(before):
                best = alike[:, before].argmax(axis=1)
                similarity[rows - own] = alike[np.arange(len(rows)), before[best]]
                partner[rows - own] = others[before[best]]
        of = np.maximum(np.searchsorted(starts, partner, side="right") - 1, 0)
        found[name] = Near(
            similarity=similarity,
            split=np.where(similarity > 0, np.array(names)[of], ""),
            position=np.where(similarity > 0, partner - starts[of], -1),
            pairs=pairs,
        )
    return found


def _digests(table: Table) -> NDArray[np.str_]:
    flat = np.ascontiguousarray(table.images).reshape(len(table), -1)
    return np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in flat], dtype="U64")


def _centred(table: Table) -> Floats:
    """Images (N, values) minus their own mean, of length one; zero where that says nothing."""
    flat = table.images.reshape(len(table), int(np.prod(table.images.shape[1:])))
    x = flat.astype(np.float32)
    x[~np.isfinite(x).all(axis=1)] = 0.0
    x -= x.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    length = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    x /= np.where(length > 0, length, 1.0).astype(np.float32)[:, None]
    return x


def _sketch(unit: Floats) -> Floats:
    """Short vectors whose products bound those of `unit` from above.

    With P a projection, <x, y> <= <Px, Py> + |x - Px| |y - Py| (Cauchy-Schwarz), so the projection
    with the remaining length as one more coordinate misses no pair, whatever the basis; principal
    directions make it tight.
    """
    if unit.shape[1] <= SKETCH or len(unit) <= SKETCH:
        return unit
    sample = unit[:: max(1, len(unit) // SAMPLE)][:SAMPLE]
    basis = np.linalg.svd(sample, full_matrices=False)[2][:SKETCH]
    low = unit @ basis.T
    full = np.einsum("nd,nd->n", unit, unit, dtype=np.float64)
    kept = np.einsum("nk,nk->n", low, low, dtype=np.float64)
    rest = np.sqrt(np.maximum(full - kept, 0.0)).astype(np.float32)
    return np.concatenate([low, rest[:, None]], axis=1)


def _blocks(start: int, end: int) -> list[tuple[int, int]]:
    size = max(1, min(1024, BLOCK_VALUES // max(end, 1)))
    return [(a, min(a + size, end)) for a in range(start, end, size)]


def _candidates(sketch: Floats, start: int, stop: int, bound: float) -> tuple[Positions, Positions]:
    """Rows in [start, stop) that may be at least `bound` alike to an earlier row, and the rows that
    one of them may be alike to: few, so that the full product costs little."""
    products = sketch[start:stop] @ sketch[:stop].T
    own = products[:, start:stop]
    own[np.triu_indices(stop - start)] = -1.0
    rows = np.flatnonzero(products.max(axis=1) >= bound)
    return start + rows, np.flatnonzero((products[rows] >= bound).any(axis=0))
