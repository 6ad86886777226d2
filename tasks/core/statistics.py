"""Intervals and paired tests: Wilson, Tango, McNemar, bootstrap, betting, Benjamini–Hochberg.

Gates compare bounds, not points. Everything takes counts or arrays and returns plain numbers; every
`confidence` is one-sided: at 0.95 a bound is missed in five of a hundred repetitions, z = 1.645.
Nothing here decides anything, and nothing reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, stdtrit

Values = NDArray[np.float64] | NDArray[np.float32] | NDArray[np.bool_] | NDArray[np.int64]
Strata = NDArray[np.int64]
Index = NDArray[np.int64]
Statistic = Callable[[Index], float]

BOLD = 0.5  # share of a capital that one bet may lose
GRID = 1000  # steps between 0 and 1 in which a betting bound is given
BLOCK = 2**21  # resampled indices held in memory at a time


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score bounds of a rate (Wilson, 1927); each bound is one-sided at `confidence`.

    At 0.95 both use z = 1.645, so the pair is a two-sided 90 % interval. Without rows nothing is
    known: (0, 1).

    >>> low, high = wilson(445, 450)
    >>> round(low, 4), round(high, 4)
    (0.9774, 0.9946)
    >>> wilson(0, 0)
    (0.0, 1.0)
    """
    _counts(n, successes)
    if n == 0:
        return 0.0, 1.0
    z = _z(confidence)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + half) / scale)
    return low, high


def tango_upper(lost: int, gained: int, n: int, confidence: float = 0.95) -> float:
    """Upper one-sided bound of the loss (lost - gained) / n between paired classifiers.

    `lost`: rows that the reference has right and the candidate wrong; `gained`: the reverse. The
    bound is the largest loss that Tango's score test (1998) does not reject. Unlike Wald's it stays
    honest with few discordant rows: with none of n it is z² / (n + z²), and without rows 1.

    >>> round(tango_upper(200, 150, 10_000), 4)  # a loss of 0.50 points, at most 0.81
    0.0081
    >>> round(tango_upper(0, 0, 5), 2)  # five equal rows prove next to nothing
    0.35
    """
    _counts(n, lost, gained)
    if lost + gained > n:
        raise ValueError(f"{lost} lost and {gained} gained rows are more than n = {n}")
    if n == 0:
        return 1.0
    z = _z(confidence)
    low, high = (lost - gained) / n, 1.0
    for _ in range(60):  # the score falls in the loss, so halving the bracket always converges
        middle = (low + high) / 2
        if _tango_excess(middle, lost, gained, n, z) > 0:
            low = middle
        else:
            high = middle
    return high


def _tango_excess(loss: float, lost: int, gained: int, n: int, z: float) -> float:
    """Positive while a true `loss` is compatible with the counts: the score is above -z."""
    a = 2 * n
    b = -lost - gained + (2 * n - lost + gained) * loss
    c = -gained * loss * (1 - loss)
    rate = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # of gained rows, under `loss`
    variance = max(n * (2 * rate + loss * (1 - loss)), 0.0)
    return lost - gained - n * loss + z * math.sqrt(variance)


def anytime_lower(values: Values, confidence: float = 0.95) -> float:
    """Lower one-sided bound of the mean of `values` in [0, 1] (N,), met one by one in random order,
    that holds after every one of them at once: whoever looks each time and stops when it suits is
    wrong in five of a hundred repetitions all the same.

    Every candidate mean is bet against with what was seen before (Waudby-Smith & Ramdas, 2024,
    predictable plug-in); one that has lost its gambler's stake 20 times over, once, is ruled out.
    With a fixed N the bound is wider than Wilson's: that is what looking costs. In steps of 1/1000.
    For the upper bound, take values and result from 1.

    >>> values = np.tile([1.0, 1.0, 0.0, 1.0], 100)
    >>> anytime_lower(values), round(wilson(300, 400)[0], 3)
    (0.679, 0.713)
    >>> anytime_lower(values[:0])
    0.0
    """
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("values to bet on lie in [0, 1]")
    _z(confidence)
    means = np.arange(1, GRID) / GRID
    capital, most = np.zeros_like(means), np.zeros_like(means)  # logarithms: now, and at best
    stake, total, spread = math.log(1 / (1 - confidence)), 0.5, 0.25
    for i, value in enumerate(values.astype(np.float64).tolist(), start=1):
        size = math.sqrt(2 * stake / (spread * math.log(1 + i)))  # spread: i times the variance
        capital += np.log1p(np.minimum(size, BOLD / means) * (value - means))
        np.maximum(most, capital, out=most)
        total += value
        spread += (value - total / (i + 1)) ** 2
    lost = np.flatnonzero(most >= stake)
    return float(means[lost[-1]]) if len(lost) else 0.0


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p of the exact McNemar test: are lost and gained rows equally likely?

    >>> mcnemar_exact(0, 0)
    1.0
    >>> round(mcnemar_exact(8, 1), 4)
    0.0391
    """
    _counts(lost + gained, lost, gained)
    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def mcnemar_loss(lost: int, gained: int) -> float:
    """One-sided p of the exact McNemar test: small where more is lost than chance explains.

    >>> mcnemar_loss(5, 0)
    0.03125
    """
    _counts(lost + gained, lost, gained)
    return float(bdtrc(lost - 1, lost + gained, 0.5)) if lost else 1.0


def bootstrap_upper(
    statistic: Values | Statistic,
    strata: Strata,
    runs: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> float:
    """Upper one-sided percentile bound of a statistic of rows, resampled within `strata` (N,).

    `statistic` is one value per row (N,), whose mean is meant (vectorised), or a function of row
    indices (N,) with repeats, such as `lambda i: ece(probabilities[i], labels[i])`. For the lower
    bound of a mean, negate values and result. A statistic that is NaN once gives NaN. The bootstrap
    cannot see what did not occur: with no error among n rows it reports none, so a gate on it
    stands beside one on `wilson` or `tango_upper` (Efron & Tibshirani, 1993).

    >>> wrong = np.array([1.0] * 5 + [0.0] * 45)
    >>> 0.1 < bootstrap_upper(wrong, np.zeros(50, dtype=np.int64)) < 0.2
    True
    """
    if len(strata) == 0:
        return math.nan
    if not callable(statistic) and statistic.shape != strata.shape:
        raise ValueError(f"values {statistic.shape} and strata {strata.shape} differ in shape")
    found: list[NDArray[np.float64]] = []
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // len(strata))
    for start in range(0, runs, block):
        index = _resamples(strata, min(block, runs - start), generator)
        if callable(statistic):
            found.append(np.array([statistic(row) for row in index], dtype=np.float64))
        else:
            found.append(statistic.astype(np.float64)[index].mean(axis=1))
    ordered = np.sort(np.concatenate(found))  # NaN sorts last, and is not hidden:
    if np.isnan(ordered[-1]):
        return math.nan
    return float(ordered[min(runs - 1, math.ceil((runs + 1) * confidence) - 1)])


def paired_bootstrap_upper(
    first: Values | Statistic,
    second: Values | Statistic,
    strata: Strata,
    runs: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> float:
    """Upper one-sided bound of first - second, both on the same resampled rows.

    Each is one value per row (its mean is meant) or a function of row indices; see
    `bootstrap_upper`. With the teacher first and the student second it bounds what the student
    loses in macro-F1, say: the rows that both find hard cancel out.

    >>> teacher, student = np.ones(50), np.array([0.0] * 5 + [1.0] * 45)
    >>> 0.1 < paired_bootstrap_upper(teacher, student, np.zeros(50, dtype=np.int64)) < 0.2
    True
    """
    if not callable(first) and not callable(second):
        return bootstrap_upper(
            first.astype(np.float64) - second.astype(np.float64), strata, runs, seed, confidence
        )
    one, other = _as_statistic(first), _as_statistic(second)
    return bootstrap_upper(lambda i: one(i) - other(i), strata, runs, seed, confidence)


def clustered_bootstrap(
    differences: NDArray[np.float64] | NDArray[np.float32] | NDArray[np.int64],
    runs: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """One-sided percentile bounds (low, high) of the mean of `differences` (seeds, rows).

    One value per seed and row, such as `right_b.astype(int) - right_a` of two recipes that were
    each trained with the same seeds: the gain of b over a is significant if low > 0. Two levels are
    resampled: seeds, and rows jointly for all seeds, since a hard row is hard for every seed
    (Davison & Hinkley, 1997, section 3.8). Few seeds look too much alike to a bootstrap: with five
    that differ by more than their rows explain, its 95 % bound covers 90 %. So their means are
    first spread by sqrt(S / (S - 1)) times Student's quantile over the normal one, which covers 95
    % there and changes nothing where seeds agree.

    >>> gain = np.zeros((5, 400))
    >>> gain[:, :12] = 1.0  # every seed has the same twelve rows more right: 3 points
    >>> [round(bound, 4) for bound in clustered_bootstrap(gain)]
    [0.0175, 0.045]
    >>> gain[4] = -gain[4]  # but one seed, which loses them, makes it doubtful
    >>> clustered_bootstrap(gain)[0] < 0
    True
    """
    if differences.ndim != 2 or differences.shape[0] < 2 or differences.shape[1] < 1:
        raise ValueError(f"differences {differences.shape} are not (2 seeds or more, rows)")
    seeds, rows = differences.shape
    values = differences.astype(np.float64)
    means = values.mean(axis=1, keepdims=True)
    few = math.sqrt(seeds / (seeds - 1)) * float(stdtrit(seeds - 1, confidence)) / _z(confidence)
    values = values + (few - 1) * (means - means.mean())
    generator = np.random.default_rng(seed)
    found: list[NDArray[np.float64]] = []
    block = max(1, BLOCK // rows)
    for start in range(0, runs, block):
        size = min(block, runs - start)
        mean_over_seeds = _drawn(seeds, size, generator) @ values / seeds
        found.append((mean_over_seeds * _drawn(rows, size, generator)).sum(axis=1) / rows)
    ordered = np.sort(np.concatenate(found))
    tail = max(1, math.floor((runs + 1) * (1 - confidence)))
    return float(ordered[tail - 1]), float(ordered[runs - tail])


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted q-values in the order of `p` (Benjamini & Hochberg, 1995).

    Calling everything with q <= 0.05 significant holds the expected share of false calls at 5 %.

    >>> [round(q, 3) for q in benjamini_hochberg([0.01, 0.04, 0.03, 0.5])]
    [0.04, 0.053, 0.053, 0.5]
    """
    values = np.asarray(p, dtype=np.float64)
    if values.size == 0:
        return []
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("p-values lie in [0, 1]")
    order = np.argsort(values, kind="stable")
    scaled = values[order] * len(values) / np.arange(1, len(values) + 1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return [float(q) for q in adjusted]


def _resamples(strata: Strata, runs: int, generator: np.random.Generator) -> Index:
    """Row indices (runs, N): each stratum keeps its size, drawn with replacement."""
    drawn = []
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        drawn.append(members[generator.integers(0, len(members), (runs, len(members)))])
    return np.concatenate(drawn, axis=1)


def _drawn(n: int, runs: int, generator: np.random.Generator) -> Index:
    """How often each of `n` is drawn in `n` draws with replacement: (runs, n)."""
    places = generator.integers(0, n, (runs, n)) + n * np.arange(runs)[:, None]
    return np.bincount(places.ravel(), minlength=runs * n).reshape(runs, n)


def _as_statistic(given: Values | Statistic) -> Statistic:
    """A function of row indices; values become their mean."""
    if callable(given):
        return given
    return lambda index: float(given[index].mean())


def _z(confidence: float) -> float:
    """The standard normal quantile of a one-sided `confidence`."""
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0.5 and 1")
    return NormalDist().inv_cdf(confidence)


def _counts(n: int, *parts: int) -> None:
    """Refuse counts that cannot be."""
    if n < 0 or any(part < 0 or part > n for part in parts):
        raise ValueError(f"counts {parts} do not fit into n = {n}")
