"""Label issues: training rows whose label a model of the other rows confidently contradicts.

Confident learning (Northcutt, Jiang & Chuang, 2021) on out-of-fold probabilities of a logistic
regression on scaled raw pixels. The model is deliberately plain: it checks labels, it classifies
nothing. Never sees validation or test rows.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from cleanlab.filter import find_label_issues
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from tasks.core.tables import Schema, Table

FIT_ROWS = 6000  # a fold's model learns from at most so many rows; every row is still judged
ITERATIONS = 100

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class LabelIssues:
    """Suspects, the worst first: `position` in train, `suggested` class, and its probability.

    `judged`: positions of the rows that were. `accuracy`: how often the out-of-fold prediction
    agreed with the label, None if nothing could be checked. `unchecked`: classes with fewer rows
    than folds.
    """

    position: Positions
    suggested: NDArray[np.int64]
    confidence: NDArray[np.float64]
    judged: Positions
    accuracy: float | None
    unchecked: tuple[str, ...]

    @property
    def checked(self) -> int:
        """How many rows were judged."""
        return len(self.judged)

    @property
    def share(self) -> float:
        """Suspects among the rows judged."""
        return len(self.position) / self.checked if self.checked else 0.0


def label_issues(
    train: Table, usable: NDArray[np.bool_], schema: Schema, folds: int, seed: int
) -> LabelIssues:
    """Judge the rows of `train` that `usable` (N,) selects; their labels must be class indices.

    Classes with fewer usable rows than `folds` are left out and named; with fewer than two classes
    left nothing is judged.
    """
    sizes = np.bincount(train.labels[usable], minlength=len(schema.classes))
    large = sizes >= folds
    unchecked = tuple(c for c, ok in zip(schema.classes, large, strict=True) if not ok)
    if large.sum() < 2:
        none = np.empty(0, dtype=np.int64)
        return LabelIssues(none, none, np.empty(0), none, None, unchecked)
    judged = np.flatnonzero(usable)
    judged = judged[large[train.labels[judged]]]
    classes, labels = np.unique(train.labels[judged], return_inverse=True)
    low, high = schema.range
    pixels = train.images[judged].reshape(len(judged), -1).astype(np.float32)
    pixels = (pixels - np.float32(low)) / np.float32(high - low)
    probabilities = out_of_fold(pixels, labels, folds, seed)
    suspects = find_label_issues(
        labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    ).astype(np.int64)
    predicted = probabilities.argmax(axis=1)
    return LabelIssues(
        position=judged[suspects],
        suggested=classes[predicted[suspects]],
        confidence=probabilities[suspects, predicted[suspects]],
        judged=judged,
        accuracy=float((predicted == labels).mean()),
        unchecked=unchecked,
    )


def out_of_fold(
    pixels: NDArray[np.float32], labels: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.float64]:
    """Probabilities (N, classes) of each row by a model that has not seen it.

    `pixels`: (N, values); `labels`: 0..classes-1, each at least `folds` times.
    """
    probabilities = np.zeros((len(labels), int(labels.max()) + 1))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    for fold, (fit, judge) in enumerate(splitter.split(pixels, labels)):
        fit = _capped(fit, labels, seed, fold)
        model = LogisticRegression(max_iter=ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(pixels[fit], labels[fit])
        probabilities[np.ix_(judge, model.classes_)] = model.predict_proba(pixels[judge])
    return probabilities


def _capped(
    fit: NDArray[np.int64], labels: NDArray[np.int64], seed: int, fold: int
) -> NDArray[np.int64]:
    """At most `FIT_ROWS` of `fit`, of every class at least one."""
    if len(fit) <= FIT_ROWS:
        return fit
    shuffled = np.random.default_rng([seed, fold]).permutation(fit)
    _, one_of_each = np.unique(labels[shuffled], return_index=True)
    rest = np.setdiff1d(np.arange(len(shuffled)), one_of_each)
    chosen = np.concatenate([one_of_each, rest])[:FIT_ROWS]
    return np.sort(shuffled[chosen])
