"""Auto-PGD (Croce & Hein, 2020): projected gradient ascent that sets its own step.

Each row begins with a step of twice the radius, with momentum. At checkpoints that come ever more
often, a row that has stopped rising goes back to its best point with half the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tasks.stress.attacks.balls import Ball, Images, Labels
from tasks.stress.attacks.objectives import BATCH, Margins, Objective, slope

Judge = Callable[[Images, Labels], Margins]  # negative where the attack has its way

MOMENTUM = 0.75  # share of the new step; the rest is that of the step before
STARTS = 3  # at most
SHORT = 1 / 3  # of the steps: a run of fewer is not worth beginning
RISING = 0.75  # share of the steps since a checkpoint that must have gained


def apgd(
    objective: Objective,
    images: NDArray[np.generic],
    labels: Labels,
    bounds: Ball,
    steps: int,
    random: np.random.Generator | None = None,
    judge: Judge | None = None,
) -> tuple[Images, Margins]:
    """From a random point of each ball, or from the raw images (N, C, H, W) themselves.

    `judge` says of every point whether it has its way, such as by the margin of what ships, and a
    row is left alone once it has; without a judge the network that `objective` climbs is asked.
    `steps` is the budget of a row on the mean: with what those that leave early leave unspent, the
    others begin again at another random point.

    Returns for each row the point that the judge liked least and its margin (N,) there.
    """
    starts = images.astype(np.float32) if random is None else bounds.sample(random)
    found, least, spent = _batches(objective, starts, labels, bounds, steps, judge)
    for _ in range(STARTS - 1):
        at = np.flatnonzero(least >= 0)
        more = min((len(labels) * steps - spent) // max(len(at), 1), steps)
        if random is None or len(at) == 0 or more < SHORT * steps:
            break
        near = bounds.take(at)
        again, lower, took = _batches(objective, near.sample(random), labels[at], near, more, judge)
        better, spent = lower < least[at], spent + took
        found[at[better]], least[at[better]] = again[better], lower[better]
    return found, least


def _batches(
    objective: Objective,
    starts: Images,
    labels: Labels,
    bounds: Ball,
    steps: int,
    judge: Judge | None,
) -> tuple[Images, Margins, int]:
    """One run from `starts`, and the steps that all rows together took."""
    parts = [
        _climb(objective, starts[part], labels[part], bounds.take(part), steps, judge)
        for part in np.split(np.arange(len(labels)), range(BATCH, len(labels), BATCH))
    ]
    found, least, spent = zip(*parts, strict=True)
    return np.concatenate(found), np.concatenate(least), sum(spent)


def _climb(
    objective: Objective,
    x: Images,
    labels: Labels,
    bounds: Ball,
    steps: int,
    judge: Judge | None,
) -> tuple[Images, Margins, int]:
    """A batch; all state is per row, and `at` names the rows that are still climbing."""
    n, marks = len(labels), checkpoints(steps)
    found, least = x.copy(), np.full(n, np.inf, dtype=np.float32)
    before, top, top_slope = x.copy(), x.copy(), np.zeros_like(x)
    peak, last = np.full(n, -np.inf), np.full(n, -np.inf)  # best value so far; the newest
    step, gained = np.full(n, 2 * bounds.radius), np.zeros(n, dtype=np.int64)
    marked, marked_peak, marked_step = 0, peak.copy(), np.zeros(n)
    at, spent = np.arange(n), 0
    for k in range(steps + 1):
        steep, value, seen = slope(objective, x[at], labels[at])
        if judge is not None:
            seen = judge(x[at], labels[at])
        lower = at[seen < least[at]]
        found[lower], least[lower] = x[lower], seen[seen < least[at]]
        gained[at] += value > last[at]
        last[at] = value
        higher = value > peak[at]
        peak[at[higher]], top[at[higher]] = value[higher], x[at[higher]]
        top_slope[at[higher]] = steep[higher]
        on = least[at] >= 0
        at, steep = at[on], steep[on]
        if k == steps or len(at) == 0:
            break
        if k in marks:
            idle = gained[at] < RISING * (k - marked)
            idle |= (marked_step[at] == step[at]) & (marked_peak[at] == peak[at])
            marked_step[at], marked_peak[at] = step[at], peak[at]
            back = at[idle]
            step[back] /= 2
            x[back] = before[back] = top[back]
            steep[idle] = top_slope[back]
            gained[:], marked = 0, k
        spent += len(at)
        near, size = bounds.take(at), step[at].astype(np.float32)[:, None, None, None]
        ahead = near.project(x[at] + size * bounds.steepest(steep))
        if k:
            drift = MOMENTUM * (ahead - x[at]) + (1 - MOMENTUM) * (x[at] - before[at])
            ahead = near.project(x[at] + drift)
        before[at], x[at] = x[at], ahead
    return found, least, spent


def checkpoints(steps: int) -> set[int]:
    """After which steps to look whether a row still rises (section 3.1 of the paper).

    >>> sorted(checkpoints(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {math.ceil(round(share * steps, 6)) for share in shares[1:] if share < 1}
