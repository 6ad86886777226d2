"""Finding slices: conjunctions of one or two conditions under which a student loses most.

Every pair is counted at once by matrix products, as in SliceLine (Sagadeeva & Boehm, 2021), and one
slice after another is taken, as a covering of the loss. What is found is only a suspicion: test it
on other rows than those it was found on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = Mapping[str, NDArray[np.float64]]  # name -> one value per row (N,)
Flags = NDArray[np.bool_]

CUTS = 8  # thresholds at each eighth of a feature's values
FOUND = 6  # slices at most: each one more makes the test of all of them harder


@dataclass(frozen=True)
class Condition:
    """`feature` above the threshold, or at most at it."""

    feature: str
    above: bool
    threshold: float

    def holds(self, features: Features) -> Flags:
        """The rows (N,) that fulfil it."""
        values = features[self.feature]
        return np.asarray(values > self.threshold if self.above else values <= self.threshold)

    def __str__(self) -> str:
        return f"{self.feature} {'>' if self.above else '<='} {self.threshold:.3g}"


@dataclass(frozen=True)
class Slice:
    """The rows that fulfil every condition."""

    conditions: tuple[Condition, ...]

    def holds(self, features: Features) -> Flags:
        """Which rows belong to it (N,)."""
        return np.asarray(np.logical_and.reduce([c.holds(features) for c in self.conditions]))

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))


def find_slices(features: Features, lost: NDArray[np.int64], support: int) -> list[Slice]:
    """At most `FOUND` slices of `support` rows or more with a net loss, the most telling first.

    `lost` (N,): 1 where the reference alone is right, -1 where the student is. The quality of a
    slice is the surplus of its loss over the mean, against the spread of a random draw of as many
    rows (Klösgen, 1996). Rows of a slice count as no loss for the next ones.

    >>> dark = np.arange(100) / 100
    >>> lost = (dark <= 0.245).astype(np.int64)
    >>> [str(s) for s in find_slices({"dark": dark}, lost, support=10)]
    ['dark <= 0.245']
    """
    n, left = len(lost), lost.astype(np.float32)
    conditions = [c for c in _conditions(features) if support <= c.holds(features).sum() < n]
    if not conditions:
        return []
    members = np.stack([c.holds(features) for c in conditions]).astype(np.float32)
    rows = (members @ members.T).astype(np.float64)  # counts are exact up to 2 ** 24
    spread = np.sqrt(np.maximum(rows * (1 - rows / n), 1e-9))
    alone = np.eye(len(conditions), dtype=bool)
    found: list[Slice] = []
    while len(found) < FOUND:
        loss = ((members * left) @ members.T).astype(np.float64)
        quality = (loss - rows * left.mean(dtype=np.float64)) / spread
        quality[(rows < support) | (loss < 2)] = 0  # one row is no group
        # Of those that hold the same rows the simplest: beyond nine digits they differ by rounding.
        quality = np.triu(quality.round(9)) + 1e-10 * alone * (quality > 0)
        first, second = np.unravel_index(quality.argmax(), quality.shape)
        if quality[first, second] <= 0:
            break
        left[(members[first] * members[second]).astype(bool)] = 0
        found.append(Slice(tuple(conditions[i] for i in dict.fromkeys((first, second)))))
    return found


def _conditions(features: Features) -> Sequence[Condition]:
    """Each feature above and at most at each of its cuts."""
    cuts = np.arange(1, CUTS) / CUTS
    return [
        Condition(name, above, float(threshold))
        for name, values in features.items()
        for threshold in np.unique(np.quantile(values, cuts, method="midpoint"))
        for above in (False, True)
    ]
