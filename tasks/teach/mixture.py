"""How much each member of an ensemble counts: convex weights of maximum likelihood.

Knows probabilities and nothing of models, rows or files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 10_000
GAP = 1e-6  # nats per row that better weights could still gain


def convex_weights(likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (M,), not negative and of sum 1, under which the mixture of M members gives N rows
    the highest likelihood. `likelihoods` (M, N) > 0: what each member gave each row's own label.

    Expectation-maximisation from equal weights (Dempster, Laird and Rubin 1977): each step shares
    every row out among the members that explain it. The likelihood is concave in the weights, so
    there is one best; the largest entry of `gain`, less 1, bounds what is left to win.

    >>> convex_weights(np.array([[0.9, 0.9], [0.3, 0.3]])).round(3).tolist()
    [1.0, 0.0]
    """
    weights = np.full(len(likelihoods), 1 / len(likelihoods))
    for _ in range(STEPS):
        gain = (likelihoods / (weights @ likelihoods)).mean(axis=1)
        if gain.max() - 1 < GAP:
            break
        weights = weights * gain
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised
