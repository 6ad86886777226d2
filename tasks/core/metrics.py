"""Point metrics of predictions: accuracy, macro-F1, calibration, divergence, agreement.

Intervals and tests are in `statistics`; nothing here decides anything.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]
Labels = NDArray[np.int64]


def softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (N, classes) of `logits` divided by `temperature`."""
    z = logits.astype(np.float64) / temperature
    z -= z.max(axis=1, keepdims=True)
    e = np.exp(z)
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def correct(logits: Floats, labels: Labels) -> NDArray[np.bool_]:
    """Which rows are right (N,)."""
    return np.asarray(logits.argmax(axis=1) == labels)


def accuracy(logits: Floats, labels: Labels) -> float:
    """Share of rows that are right."""
    return float(correct(logits, labels).mean())


def macro_f1(predicted: Labels, labels: Labels, classes: int) -> float:
    """Mean of the per-class F1; a class that neither occurs nor is predicted does not count.

    >>> macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    0.6666666666666666
    """
    hit = np.bincount(labels[predicted == labels], minlength=classes)
    total = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    seen = total > 0
    return float((2 * hit[seen] / total[seen]).mean())


def calibration_bins(
    probabilities: Floats, labels: Labels, bins: int = 15
) -> list[dict[str, float | int]]:
    """Reliability diagram: per confidence bin its rows, mean confidence and accuracy."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "rows": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for b in range(bins)
        if (inside := place == b).any()
    ]


def ece(probabilities: Floats, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error over equal-width confidence bins (Guo et al., 2017)."""
    rows = calibration_bins(probabilities, labels, bins)
    gaps = (r["rows"] * abs(r["confidence"] - r["accuracy"]) for r in rows)
    return float(sum(gaps) / len(labels))


def negative_log_likelihood(logits: Floats, labels: Labels, temperature: float = 1.0) -> float:
    """Mean cross-entropy in nats."""
    chosen = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def brier(probabilities: Floats, labels: Labels) -> float:
    """Mean squared distance between probabilities and one-hot labels (Brier, 1950)."""
    one_hot = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The temperature in [0.05, 20] that minimises NLL (temperature scaling, Guo et al., 2017)."""
    from scipy.optimize import minimize_scalar  # slow to import, and only two stages fit

    found = minimize_scalar(
        lambda t: negative_log_likelihood(logits, labels, float(np.exp(t))),
        bounds=(np.log(0.05), np.log(20.0)),
        method="bounded",
    )
    return float(np.exp(found.x))


def kl(teacher: Floats, student: Floats) -> NDArray[np.float64]:
    """KL(teacher ‖ student) per row in nats, from logits."""
    p, q = softmax(teacher), softmax(student)
    log = np.log(np.maximum(p, 1e-12)) - np.log(np.maximum(q, 1e-12))
    return np.asarray((p * log).sum(axis=1))


def js(first: Floats, second: Floats) -> NDArray[np.float64]:
    """Jensen–Shannon divergence per row in nats, from logits: symmetric, 0 to ln 2 (Lin, 1991).

    >>> apart, equal = js(np.array([[99.0, 0.0], [1.0, 2.0]]), np.array([[0.0, 99.0], [1.0, 2.0]]))
    >>> round(float(apart), 4), round(float(equal), 4)
    (0.6931, 0.0)
    """
    p, q = softmax(first), softmax(second)
    middle = np.log(np.maximum((p + q) / 2, 1e-12))
    parts = (r * (np.log(np.maximum(r, 1e-12)) - middle) for r in (p, q))
    return np.asarray(sum(part.sum(axis=1) for part in parts) / 2)


def cosine(a: Floats, b: Floats) -> float:
    """Mean cosine similarity of the rows of two logit matrices."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(((x * y).sum(axis=1) / np.maximum(norms, 1e-12)).mean())
