"""L-infinity attacks on image classifiers: projected gradient descent and the Square black box.

Both stay inside the declared range and inside the ball exactly, in float32, and know nothing of
what the result is used for. PGD needs a network that has gradients; Square needs logits alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.core.tables import Schema

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Score = Callable[[Images], NDArray[np.float32]]
Loss = Literal["cross_entropy", "margin"]


@dataclass(frozen=True)
class Ball:
    """All images within a radius of given ones and within the range, as two float32 corners."""

    low: Images
    high: Images

    def clip(self, images: Images) -> Images:
        """The nearest images inside."""
        return np.clip(images, self.low, self.high)

    def take(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> Ball:
        """The balls of some rows."""
        return Ball(self.low[index], self.high[index])


def ball(images: NDArray[np.generic], radius: float, low: float, high: float) -> Ball:
    """The L-infinity ball of `radius` raw units around `images` (N, C, H, W), cut by the range.

    Corners are rounded inwards, so that no float32 image inside lies further than `radius` away.

    >>> b = ball(np.array([[[[0.1]]]]), 0.3, 0.0, 16.0)
    >>> bool(np.float64(b.high[0, 0, 0, 0]) <= np.float64(np.float32(0.1)) + 0.3)
    True
    """
    centre = images.astype(np.float32).astype(np.float64)
    below, above = centre - radius, centre + radius
    down, up = below.astype(np.float32), above.astype(np.float32)
    down = np.where(down < below, np.nextafter(down, np.float32(np.inf)), down)
    up = np.where(up > above, np.nextafter(up, np.float32(-np.inf)), up)
    return Ball(np.maximum(down, np.float32(low)), np.minimum(up, np.float32(high)))


def around(images: NDArray[np.generic], epsilon: float, data: Schema) -> Ball:
    """The ball of `epsilon` times the range of `data` around raw images (N, C, H, W)."""
    low, high = data.range
    return ball(images, epsilon * (high - low), low, high)


def margin(logits: NDArray[np.float32], labels: Labels) -> NDArray[np.float32]:
    """True logit minus the best other one (N,): negative where the row is wrong.

    >>> margin(np.array([[1.0, 3.0], [1.0, 3.0]], dtype=np.float32), np.array([0, 1]))
    array([-2.,  2.], dtype=float32)
    """
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    return np.asarray(logits[rows, labels] - others.max(axis=1))


def _torch_margin(logits: Tensor, labels: Tensor) -> Tensor:
    true = logits.gather(1, labels[:, None])[:, 0]
    hidden = F.one_hot(labels, logits.shape[1]).bool()
    return true - logits.masked_fill(hidden, -torch.inf).amax(1)


def _slope(
    network: nn.Module, images: Images, labels: Labels, loss: Loss
) -> tuple[Images, NDArray[np.float32]]:
    """The gradient of `loss` to climb, by the images, and the margin (N,) where it was taken."""
    x = torch.from_numpy(np.ascontiguousarray(images)).requires_grad_(True)
    y = torch.from_numpy(labels)
    logits = network(x)
    found = _torch_margin(logits, y)
    climbed = -found.sum()
    if loss == "cross_entropy":
        climbed = F.cross_entropy(logits, y, reduction="sum")
    slope = torch.autograd.grad(climbed, x, allow_unused=True)[0] if climbed.requires_grad else None
    moved = np.zeros_like(images) if slope is None else slope.numpy()
    return moved, found.detach().numpy()


def gradients(
    network: nn.Module, images: Images, labels: Labels, loss: Loss, batch: int = 256
) -> Images:
    """The gradient of `loss` by each image (N, C, H, W), in eval mode."""
    network.eval()
    parts = [
        _slope(network, images[i : i + batch], labels[i : i + batch], loss)[0]
        for i in range(0, len(labels), batch)
    ]
    return np.concatenate(parts)


def pgd(
    network: nn.Module,
    images: NDArray[np.generic],
    labels: Labels,
    bounds: Ball,
    steps: int,
    random: np.random.Generator,
    batch: int = 256,
) -> Images:
    """Projected gradient descent (Madry et al., 2018), two restarts, the worst point of each row.

    Cross-entropy from a random start, then the margin from the images themselves, since
    cross-entropy has no gradient left where a network is sure. Steps shrink by a cosine from half
    the ball's width to nothing. The network is left in eval mode; its own weights get no gradient.
    """
    network.eval()
    starts = images.astype(np.float32)
    noise = random.random(starts.shape, dtype=np.float32)
    random_starts = bounds.clip(bounds.low + noise * (bounds.high - bounds.low))
    worst = starts.copy()
    for first in range(0, len(labels), batch):
        part = slice(first, first + batch)
        rows, inner = labels[part], Ball(bounds.low[part], bounds.high[part])
        best, least = starts[part], np.full(len(rows), np.inf, dtype=np.float32)
        climbs: list[tuple[Loss, Images]] = [
            ("cross_entropy", random_starts[part]),
            ("margin", starts[part]),
        ]
        for loss, start in climbs:
            best, least = _climb(network, start, rows, inner, steps, loss, best, least)
        worst[part] = best
    return worst


def _climb(
    network: nn.Module,
    x: Images,
    labels: Labels,
    bounds: Ball,
    steps: int,
    loss: Loss,
    best: Images,
    least: NDArray[np.float32],
) -> tuple[Images, NDArray[np.float32]]:
    """One restart; returns the points of least margin so far and those margins."""
    span = bounds.high - bounds.low
    for step in range(steps + 1):
        slope, found = _slope(network, x, labels, loss)
        better = found < least
        best = np.where(better[:, None, None, None], x, best)
        least = np.where(better, found, least)
        if step < steps:
            share = 0.25 + 0.25 * np.cos(np.pi * step / steps)
            x = bounds.clip((x + share * span * np.sign(slope)).astype(np.float32))
    return best, least


def square(
    score: Score,
    images: NDArray[np.generic],
    labels: Labels,
    bounds: Ball,
    queries: int,
    random: np.random.Generator,
) -> tuple[Images, NDArray[np.int64]]:
    """The Square attack (Andriushchenko et al., 2020): random search by logits alone, batched.

    Starts with vertical stripes at the ball's corners, then sets random squares to a corner, and
    keeps what lowers the margin. A row leaves the batch once it is wrong.

    Returns the images and the queries (N,) that each row took, never more than `queries`.
    """
    n, channels, height, width = images.shape
    stripes = random.random((n, channels, 1, width)) < 0.5
    best = np.where(stripes, bounds.low, bounds.high)
    least = margin(score(best), labels)
    used = np.ones(n, dtype=np.int64)
    for query in range(1, queries):
        side = _side(query / queries, height, width)
        top = random.integers(0, height - side[0] + 1, n)
        left = random.integers(0, width - side[1] + 1, n)
        signs = random.random((n, channels, 1, 1)) < 0.5
        live = np.flatnonzero(least >= 0)
        if len(live) == 0:
            break
        inside = _windows(top[live], left[live], side, height, width)
        corner = np.where(signs[live], bounds.low[live], bounds.high[live])
        tried = np.where(inside, corner, best[live])
        found = margin(score(tried), labels[live])
        used[live] += 1
        better = found < least[live]
        best[live[better]], least[live[better]] = tried[better], found[better]
    return best, used


# Share of the area to set, by progress: halved at these shares of the budget, as in the paper.
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def _side(progress: float, height: int, width: int) -> tuple[int, int]:
    """Sides of the square at `progress` (0 to 1), in the image's own proportions."""
    share = float(np.sqrt(0.8 / 2 ** sum(progress > at for at in _HALVINGS)))
    return max(1, round(share * height)), max(1, round(share * width))


def _windows(
    top: NDArray[np.int64], left: NDArray[np.int64], side: tuple[int, int], height: int, width: int
) -> NDArray[np.bool_]:
    """Masks (N, 1, H, W) that are true inside each row's square."""
    down = np.arange(height)[None, :] - top[:, None]
    right = np.arange(width)[None, :] - left[:, None]
    rows = (down >= 0) & (down < side[0])
    columns = (right >= 0) & (right < side[1])
    return np.asarray(rows[:, None, :, None] & columns[:, None, None, :])
