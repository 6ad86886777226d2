"""Accuracy against epsilon in one norm: when each row falls, for the student and its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.stress.attacks.balls import Norm
from tasks.stress.ladder import Level, Tried

Who = Literal["student", "teacher"]
Falls = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One norm. Falls are over all sampled rows (N,): the smallest epsilon that breaks each, 0 for
    one that is wrong when clean, infinity for one that holds."""

    norm: Norm
    epsilons: tuple[float, ...]
    levels: list[Level]
    student: Falls
    teacher: Falls

    def holds(self, who: Who, epsilon: float) -> NDArray[np.bool_]:
        """Which rows are still right within `epsilon`."""
        fall: Falls = getattr(self, who)
        return np.asarray(fall > epsilon)

    def areas(self, who: Who) -> NDArray[np.float64]:
        """Per row the area under its accuracy-epsilon curve, as a share of all (trapezoids)."""
        x = np.array([0.0, *self.epsilons])
        flags = np.stack([self.holds(who, epsilon) for epsilon in x])
        return np.asarray(np.trapezoid(flags.astype(np.float64), x, axis=0) / x[-1])


def joined(curves: Sequence[Curve]) -> Curve:
    """The curve of all rows together, from those of parts of them in the same norm."""
    return replace(
        curves[0],
        levels=[_together(parts) for parts in zip(*(c.levels for c in curves), strict=True)],
        student=np.concatenate([curve.student for curve in curves]),
        teacher=np.concatenate([curve.teacher for curve in curves]),
    )


def _together(parts: tuple[Level, ...]) -> Level:
    """One epsilon of all parts."""
    tried: dict[str, Tried] = {}
    for name in parts[0].attacks:
        met = [part.attacks[name] for part in parts]
        tried[name] = Tried(sum(t.rows for t in met), sum(t.broke for t in met))
    disagree = [part.disagree for part in parts if part.disagree is not None]
    return Level(
        parts[0].epsilon,
        tried,
        np.concatenate([part.queries for part in parts]),
        np.concatenate(disagree) if disagree else None,
    )
