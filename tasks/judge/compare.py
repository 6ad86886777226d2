"""Paired comparisons of two models on the same rows: counts, and the loss per class.

Takes correct/wrong flags, returns figures; what they mean is for `gates` to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.core.statistics import benjamini_hochberg, mcnemar_exact, mcnemar_loss, tango_upper

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """`lost`: rows that the reference has right and the candidate wrong; `gained`: the reverse."""

    lost: int
    gained: int
    rows: int

    @property
    def loss(self) -> float:
        """Net loss as a share of rows; negative where the candidate is better."""
        return (self.lost - self.gained) / self.rows

    @property
    def p(self) -> float:
        """Two-sided exact McNemar: could both be equally good?"""
        return mcnemar_exact(self.lost, self.gained)

    def upper(self, confidence: float) -> float:
        """Upper bound of the loss (Tango)."""
        return tango_upper(self.lost, self.gained, self.rows, confidence)


@dataclass(frozen=True)
class ClassPair:
    """One class. `q`: one-sided exact McNemar for a loss, adjusted over all classes; `least_q`: the
    smallest that its rows allow, if every row that the reference has right were lost."""

    name: str
    pair: Pair
    reference: float  # accuracy
    candidate: float
    q: float
    least_q: float


def pair(reference: Flags, candidate: Flags) -> Pair:
    """Count the discordant rows.

    >>> pair(np.array([True, True, False]), np.array([False, True, True]))
    Pair(lost=1, gained=1, rows=3)
    """
    return Pair(
        lost=int((reference & ~candidate).sum()),
        gained=int((~reference & candidate).sum()),
        rows=len(reference),
    )


def per_class(
    reference: Flags, candidate: Flags, labels: NDArray[np.int64], classes: tuple[str, ...]
) -> list[ClassPair]:
    """Each class that has rows, in order, with q-values over all of them."""
    found = []
    for number, name in enumerate(classes):
        member = labels == number
        if member.any():
            found.append((name, reference[member], candidate[member]))
    pairs = [pair(first, second) for _, first, second in found]
    adjusted = benjamini_hochberg([mcnemar_loss(p.lost, p.gained) for p in pairs])
    least = [min(1.0, len(found) * mcnemar_loss(int(first.sum()), 0)) for _, first, _ in found]
    return [
        ClassPair(name, counts, float(first.mean()), float(second.mean()), q, least_q)
        for (name, first, second), counts, q, least_q in zip(
            found, pairs, adjusted, least, strict=True
        )
    ]


def ruined(classes: list[ClassPair], margin: float, confidence: float) -> list[ClassPair]:
    """Classes whose loss is above `margin` and significant after adjustment."""
    return [c for c in classes if c.pair.loss > margin and c.q <= 1 - confidence]


def undecided(classes: list[ClassPair], margin: float, confidence: float) -> list[ClassPair]:
    """Classes whose loss is above `margin` and which have too few rows for any significant loss."""
    alpha = 1 - confidence
    return [c for c in classes if c.pair.loss > margin and c.q > alpha and c.least_q > alpha]
