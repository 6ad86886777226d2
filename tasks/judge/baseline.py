"""The cheap baseline: multinomial logistic regression on scaled raw values.

A student that does not beat it has learned nothing that needed a teacher. It costs little on
purpose: at most `ROWS` training rows (those with the smallest hashes, a fixed random sample) and
`FEATURES` features (larger images are averaged in blocks). It chooses nothing and is never shipped.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from tasks.core.tables import Table

ROWS = 5_000
FEATURES = 4_096
ITERATIONS = 300  # of L-BFGS; reached only where the fit has long stopped to matter


@dataclass(frozen=True)
class BaselinePredictions:
    """Predicted class indices of the test rows (N,), and what it was fitted on."""

    predicted: NDArray[np.int64]
    rows: int
    features: int


def fit_and_predict(train: Table, test: Table) -> BaselinePredictions:
    """Fit on `train` as capped, predict `test`. Deterministic: one thread, no random start."""
    fitted_on = train.take(np.sort(np.argsort(train.rows, kind="stable")[:ROWS]))
    inputs = features(fitted_on.images)
    known = np.unique(fitted_on.labels)
    if len(known) == 1:  # one class to learn is one answer to give
        predicted = np.full(len(test), known[0], dtype=np.int64)
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(inputs, fitted_on.labels)
            predicted = np.asarray(model.predict(features(test.images)), dtype=np.int64)
    return BaselinePredictions(predicted, len(fitted_on), inputs.shape[1])


def features(images: NDArray[np.generic]) -> NDArray[np.float64]:
    """Raw values (N, F) of images (N, C, H, W), averaged in blocks until F <= FEATURES.

    >>> features(np.zeros((2, 3, 16, 20))).shape
    (2, 960)
    >>> features(np.ones((1, 3, 100, 100))).shape
    (1, 3468)
    """
    n, channels, height, width = images.shape
    block = max(1, math.ceil(math.sqrt(channels * height * width / FEATURES)))
    while channels * math.ceil(height / block) * math.ceil(width / block) > FEATURES:
        block += 1
    if block == 1:
        return images.reshape(n, -1).astype(np.float64)
    rows = np.add.reduceat(images, np.arange(0, height, block), axis=2, dtype=np.float64)
    sums = np.add.reduceat(rows, np.arange(0, width, block), axis=3)
    counts = np.outer(_block_sizes(height, block), _block_sizes(width, block))
    return np.asarray((sums / counts).reshape(n, -1))


def _block_sizes(length: int, block: int) -> NDArray[np.int64]:
    """How many values each block of an axis holds; the last may be short."""
    return np.diff(np.append(np.arange(0, length, block), length))
