"""Images that are none of the data: made from a run's own rows, so that they need no second source.

Each kind keeps something of the rows and breaks the rest; none of them is any class. They tell a
model that is sure of everything from one that knows its limits, not how it meets a real stranger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.core.tables import Schema

Images = NDArray[np.float32]
Kind = Literal["inverted", "noise", "permuted"]


def outliers(
    kind: Kind, images: NDArray[np.generic], data: Schema, random: np.random.Generator
) -> Images:
    """As many images of `kind` as there are raw `images` (N, C, H, W), in their range."""
    return KINDS[kind](images.astype(np.float32), data, random)


def _permuted(images: Images, _: Schema, random: np.random.Generator) -> Images:
    """Each row's own pixels at shuffled places: its histogram, no shape."""
    n, channels = images.shape[:2]
    flat = images.reshape(n, channels, -1)
    order = random.permuted(np.tile(np.arange(flat.shape[2]), (n, 1)), axis=1)
    return np.take_along_axis(flat, order[:, None, :], axis=2).reshape(images.shape)


def _inverted(images: Images, data: Schema, _: np.random.Generator) -> Images:
    """Dark for bright: its shape, no usual value."""
    low, high = (np.float32(v) for v in data.range)
    return np.asarray(np.clip(low + high - images, low, high))


def _noise(images: Images, data: Schema, random: np.random.Generator) -> Images:
    """Uniform noise over the range: neither shape nor histogram."""
    low, high = (np.float32(v) for v in data.range)
    share = random.random(images.shape, dtype=np.float32)
    return np.asarray(np.clip(low + share * (high - low), low, high))


KINDS: dict[Kind, Callable[[Images, Schema, np.random.Generator], Images]] = {
    "inverted": _inverted,
    "noise": _noise,
    "permuted": _permuted,
}
