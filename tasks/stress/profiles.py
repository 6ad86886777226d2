"""What a student must withstand: the gates of a profile, and whether more rows can change them.

Under `standard` it may be no worse than its teacher at small epsilons and over the whole curve;
under `robust` it withstands a large one by itself. A sample of fixed size is judged by Tango's and
Wilson's bounds. One that is met in parts is judged by bounds that hold at every look at once, so
that it may end as soon as each gate is settled: rows that are not attacked cost no queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.core.params import Section
from tasks.core.reports import Gate, at_least, at_most
from tasks.core.statistics import anytime_lower, paired_bootstrap_upper, tango_upper, wilson
from tasks.stress.curve import Curve

SMALL = 0.016  # 4 of 255, and what it is rounded to: up to here a student may not lose to a teacher


class Robust(Section):
    """What the profile `robust` asks: the accuracy that is left within `epsilon` of the range."""

    epsilon: float = Field(gt=0, le=1)
    accuracy: float = Field(ge=0, le=1)


class Profile(Section):
    """`margin`: by how much, in the profile `standard`, the student may be worse than the teacher.

    `robust`: what the other profile asks.
    """

    profile: Literal["standard", "robust"]
    margin: float = Field(ge=0, le=1)
    robust: Robust


@dataclass(frozen=True)
class Asked:
    """A gate: whether the mean of `values` in [0, 1], one a row (N,), reaches `least`."""

    values: NDArray[np.float64]
    least: float
    gate: Callable[[bool], Gate]  # whether the sample may end at any look -> the gate

    @property
    def settled(self) -> bool:
        """Whether the rows so far decide it, one way or the other: the gate itself says whether
        it is passed."""
        return self.gate(True).passed or 1 - anytime_lower(1 - self.values) < self.least


def settled(linf: Curve, asks: Profile, labels: NDArray[np.int64]) -> bool:
    """Whether the rows of `linf`, labelled `labels` (N,), decide every gate of the profile."""
    return all(asked.settled for asked in _asked(linf, asks, labels))


def gates(
    linf: Curve, asks: Profile, labels: NDArray[np.int64], in_parts: bool = False
) -> tuple[Gate, ...]:
    """Those of the profile; `in_parts`: the sample could have ended at any of several looks."""
    return tuple(asked.gate(in_parts) for asked in _asked(linf, asks, labels))


def _asked(linf: Curve, asks: Profile, labels: NDArray[np.int64]) -> list[Asked]:
    if asks.profile == "robust":
        return [_withstands(linf, asks.robust)]
    small = [epsilon for epsilon in linf.epsilons if epsilon <= SMALL]
    return [*(_no_worse(linf, e, asks.margin) for e in small), _area(linf, labels, asks.margin)]


def _withstands(curve: Curve, robust: Robust) -> Asked:
    holds = curve.holds("student", robust.epsilon)

    def gate(in_parts: bool) -> Gate:
        fixed = wilson(int(holds.sum()), len(holds))[0]
        return at_least(
            "adversarial.robust",
            anytime_lower(holds) if in_parts else fixed,
            robust.accuracy,
            f"Under attack within {robust.epsilon:g} of the range, the student keeps "
            f"{holds.mean():.1%} of {len(holds)} rows; the lower 95 % bound"
            f"{_looks(in_parts)} is compared.",
        )

    return Asked(holds.astype(np.float64), robust.accuracy, gate)


def _no_worse(curve: Curve, epsilon: float, allowed: float) -> Asked:
    student, teacher = curve.holds("student", epsilon), curve.holds("teacher", epsilon)
    lost, gained = int((teacher & ~student).sum()), int((student & ~teacher).sum())
    values, n = _halves(student, teacher), len(student)

    def gate(in_parts: bool) -> Gate:
        return at_most(
            f"adversarial.epsilon_{epsilon:g}",
            _lost(values) if in_parts else tango_upper(lost, gained, n),
            allowed,
            f"Under attack within {epsilon:g} of the range, the student keeps {student.mean():.1%} "
            f"of {n} rows and the teacher {teacher.mean():.1%} ({lost} rows lost, {gained} "
            f"gained); the upper 95 % bound of the loss{_looks(in_parts)} is compared.",
        )

    return Asked(values, (1 - allowed) / 2, gate)


def _area(curve: Curve, labels: NDArray[np.int64], allowed: float) -> Asked:
    student, teacher = curve.areas("student"), curve.areas("teacher")
    values = _halves(student, teacher)

    def gate(in_parts: bool) -> Gate:
        if in_parts:
            bound = _lost(values)
        else:  # no fewer rows can prove more than what Tango's bound says of equal ones
            equal = tango_upper(0, 0, len(labels))
            bound = max(paired_bootstrap_upper(teacher, student, labels), equal)
        how = _looks(in_parts) or " (paired bootstrap)"
        return at_most(
            "adversarial.area",
            bound,
            allowed,
            f"Over all epsilons up to {curve.epsilons[-1]:g} of the range, the area under the "
            f"student's accuracy is {student.mean():.1%} and under the teacher's "
            f"{teacher.mean():.1%}; the upper 95 % bound of the loss{how} is compared.",
        )

    return Asked(values, (1 - allowed) / 2, gate)


def _lost(values: NDArray[np.float64]) -> float:
    """Upper bound, at every look, of the loss that `_halves` made `values` of: on its grid of
    1/500, where 1 - 2 x 0.485 is 0.03 and not a little more."""
    return round(1 - 2 * anytime_lower(values), 9)


def _halves(
    student: NDArray[np.float64] | NDArray[np.bool_],
    teacher: NDArray[np.float64] | NDArray[np.bool_],
) -> NDArray[np.float64]:
    """A loss between -1 and 1 as a value to bet on: 0 where all is lost, 1/2 where none is."""
    return np.asarray((1 + student.astype(np.float64) - teacher.astype(np.float64)) / 2)


def _looks(in_parts: bool) -> str:
    return " that holds at every look" if in_parts else ""
