"""How well one number tells two groups of rows apart: AUC with bounds, and error rates at a level.

Groups are arrays of scores; whose scores should be smaller is named first. Nothing here knows what
the groups are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tasks.core.statistics import bootstrap_upper

RUNS = 500  # of the bootstrap
Scores = NDArray[np.float64]


def auc(smaller: Scores, larger: Scores) -> float:
    """Share of pairs in which `smaller` has the smaller score; ties count half (Hanley & McNeil,
    1982: the area under the ROC curve). 0.5 is chance.

    >>> auc(np.array([0.1, 0.5]), np.array([0.5, 0.9]))
    0.875
    """
    n, m = len(smaller), len(larger)
    ranks = rankdata(np.concatenate([smaller, larger]))[:n]
    return float((n * m + n * (n + 1) / 2 - ranks.sum()) / (n * m))


def auc_bounds(smaller: Scores, larger: Scores, seed: int) -> dict[str, float]:
    """`auc` with one-sided 95 % bounds, by a bootstrap within either group."""
    scores = np.concatenate([smaller, larger])
    group = np.repeat(np.arange(2), [len(smaller), len(larger)])

    def statistic(index: NDArray[np.int64]) -> float:
        drawn, side = scores[index], group[index]
        return auc(drawn[side == 0], drawn[side == 1])

    return {
        "value": auc(smaller, larger),
        "low": -bootstrap_upper(lambda index: -statistic(index), group, RUNS, seed),
        "high": bootstrap_upper(statistic, group, RUNS, seed),
    }


def passing(smaller: Scores, larger: Scores, share: float) -> float:
    """Share of `smaller` that scores as high as the highest `share` of `larger` do.

    With strangers first, the data second and 0.95 this is FPR95 (Hendrycks & Gimpel, 2017).

    >>> passing(np.array([0.1, 0.2, 0.3, 0.9]), np.array([0.3, 0.5, 0.6, 0.7]), 0.75)
    0.25
    """
    level = np.quantile(larger, 1 - share, method="higher")
    return float((smaller >= level).mean())
