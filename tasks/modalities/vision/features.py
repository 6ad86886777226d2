"""Plain figures about an image, in words that people use: what slices of a test set are found by.

They look at pixels alone, never at a label or a model, so that a slice means the same for teacher,
student and the next student.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.core.tables import Schema

FOREGROUND = 0.15  # of the range: how far from its background a pixel is drawn upon


def describe(images: NDArray[np.generic], data: Schema) -> dict[str, NDArray[np.float64]]:
    """Name -> one value per image of (N, C, H, W), each between 0 and 1.

    The background is the median of an image's border; the foreground is what differs from it.

    >>> data = Schema(modality="vision", shape=(1, 4, 4), dtype="uint8", range=(0, 2),
    ...               classes=("a", "b"))
    >>> image = np.zeros((1, 1, 4, 4), dtype=np.uint8)
    >>> image[0, 0, 1:3, 1] = 2
    >>> found = describe(image, data)
    >>> [float(found[name][0]) for name in ("mean intensity", "foreground", "height", "width")]
    [0.125, 0.125, 0.5, 0.25]
    """
    low, high = data.range
    values = (images.astype(np.float64) - low) / (high - low)
    grey = values.mean(axis=1)
    drawn = np.abs(grey - _background(grey)[:, None, None])
    inside = drawn > FOREGROUND
    found = {
        "mean intensity": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        "foreground": inside.mean(axis=(1, 2)),
        "height": _extent(inside.any(axis=2)),
        "width": _extent(inside.any(axis=1)),
        "centre, down": _centre(drawn.sum(axis=2)),
        "centre, across": _centre(drawn.sum(axis=1)),
        "edge energy": _edges(grey),
        "asymmetry": np.abs(grey - grey[:, :, ::-1]).mean(axis=(1, 2)),
    }
    if values.shape[1] > 1:
        found["saturation"] = (values.max(axis=1) - values.min(axis=1)).mean(axis=(1, 2))
    return found


def _background(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each image's border (N,)."""
    sides = (grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1])
    return np.asarray(np.median(np.concatenate(sides, axis=1), axis=1))


def _extent(occupied: NDArray[np.bool_]) -> NDArray[np.float64]:
    """From the first to the last of the lines (N, lines) with foreground, as a share of all."""
    lines = occupied.shape[1]
    first = occupied.argmax(axis=1)
    last = lines - occupied[:, ::-1].argmax(axis=1)
    return np.asarray(np.where(occupied.any(axis=1), last - first, 0) / lines)


def _centre(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the mass (N, lines) lies: 0 at the first line, 1 at the last; 0.5 where there is none.

    >>> _centre(np.array([[1.0, 0, 0], [0, 0, 0]])).tolist()
    [0.0, 0.5]
    """
    total = weights.sum(axis=1)
    place = weights @ np.linspace(0, 1, weights.shape[1])
    return np.where(total > 0, place / np.where(total > 0, total, 1), 0.5)


def _edges(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean absolute difference between neighbours; 0 for a single pixel."""
    steps = [np.abs(np.diff(grey, axis=axis)) for axis in (1, 2) if grey.shape[axis] > 1]
    return np.asarray(sum((s.mean(axis=(1, 2)) for s in steps), np.zeros(len(grey)))) / 2
