"""Where an attack may go: all images within a radius of given ones and within the declared range.

What a ball hands out lies inside it exactly, as float32 values compared in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.core.tables import Schema

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Index = NDArray[np.bool_] | NDArray[np.int64]
Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Ball:
    """Balls of one radius in raw units around images (N, C, H, W), cut by the range.

    `low` and `high` are the corners of the box that holds each ball; in L-infinity they are it.
    """

    norm: Norm
    radius: float
    centre: Images
    low: Images
    high: Images

    def take(self, index: Index) -> Ball:
        """The balls of some rows."""
        parts = (self.centre[index], self.low[index], self.high[index])
        return Ball(self.norm, self.radius, *parts)

    def project(self, images: NDArray[np.floating]) -> Images:
        """Images (N, C, H, W) moved inside: the nearest ones in L-infinity; in L2 first into the
        corners, then along the line to the centre: the other way round, what points out of the
        range would take its share of the radius and move nothing."""
        if self.norm == "linf":
            return _clipped(images, self)
        centre = self.centre.astype(np.float64)
        moved = np.clip(images, self.low, self.high) - centre
        share = np.minimum(1.0, self.radius * (1 - 1e-12) / np.maximum(lengths(moved), 1e-30))
        wanted = share * moved
        near = (centre + wanted).astype(np.float32)
        outward = np.abs(near - centre) > np.abs(wanted)
        near = np.where(outward, np.nextafter(near, self.centre), near)
        return _clipped(near, self)

    def sample(self, random: np.random.Generator) -> Images:
        """A random image in each ball: uniform in L-infinity, in a random direction in L2."""
        if self.norm == "linf":
            noise = random.random(self.centre.shape, dtype=np.float32)
            return self.project(self.low + noise * (self.high - self.low))
        noise = random.standard_normal(self.centre.shape, dtype=np.float32)
        return self.project(self.centre + self.radius * noise / lengths(noise))

    def steepest(self, slope: Images) -> Images:
        """The unit step of this norm that climbs a slope (N, C, H, W) fastest; none of no slope."""
        if self.norm == "linf":
            return np.asarray(np.sign(slope))
        return np.asarray(slope / np.maximum(lengths(slope), np.float32(1e-30)))


def _clipped(images: NDArray[np.floating], bounds: Ball) -> Images:
    return np.asarray(np.clip(images, bounds.low, bounds.high), dtype=np.float32)


def lengths(images: NDArray[np.floating]) -> NDArray[np.floating]:
    """Euclidean length of each image, (N, 1, 1, 1)."""
    return np.asarray(np.sqrt(np.square(images).sum(axis=(1, 2, 3), keepdims=True)))


def ball(
    images: NDArray[np.generic], radius: float, low: float, high: float, norm: Norm = "linf"
) -> Ball:
    """The balls of `radius` raw units around `images` (N, C, H, W), cut by the range.

    Corners are rounded inwards, so that no float32 image inside lies further than `radius` away.

    >>> b = ball(np.array([[[[0.1]]]]), 0.3, 0.0, 16.0)
    >>> bool(np.float64(b.high[0, 0, 0, 0]) <= np.float64(np.float32(0.1)) + 0.3)
    True
    """
    centre = images.astype(np.float32)
    below, above = centre.astype(np.float64) - radius, centre.astype(np.float64) + radius
    down, up = below.astype(np.float32), above.astype(np.float32)
    down = np.where(down < below, np.nextafter(down, np.float32(np.inf)), down)
    up = np.where(up > above, np.nextafter(up, np.float32(-np.inf)), up)
    corners = np.maximum(down, np.float32(low)), np.minimum(up, np.float32(high))
    return Ball(norm, radius, centre, *corners)


def around(images: NDArray[np.generic], epsilon: float, data: Schema, norm: Norm = "linf") -> Ball:
    """The balls of `epsilon` times the range of `data` around raw images (N, C, H, W)."""
    low, high = data.range
    return ball(images, epsilon * (high - low), low, high, norm)
