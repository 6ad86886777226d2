"""The Square attack (Andriushchenko et al., 2020): random search by logits alone, batched.

One query changes one square of each image and is kept if the margin falls. The squares shrink as
the budget is spent. Random numbers are drawn for all rows at every query, so what becomes of a row
does not depend on when the others leave.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.stress.attacks.balls import Ball, Images, Labels, lengths
from tasks.stress.attacks.objectives import Margins, Score, margin

Places = NDArray[np.int64]
Window = tuple[NDArray[np.int64], ...]

# The share of the area that a square takes, halved at these shares of the budget.
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
FIRST = {"linf": 0.8, "l2": 0.1}  # as the paper has it for small images
TILES = 5  # per axis, of the start in L2


def square(
    score: Score,
    images: NDArray[np.generic],
    labels: Labels,
    bounds: Ball,
    queries: int,
    random: np.random.Generator,
) -> tuple[Images, Margins, Places]:
    """Search within `bounds` around raw `images` (N, C, H, W); a row leaves once it is wrong.

    Returns the images, their margins (N,) and the queries (N,) that each row took, never more than
    `queries`.
    """
    search = _linf if bounds.norm == "linf" else _l2
    return search(score, images.shape, labels, bounds, queries, random)


def _linf(
    score: Score,
    shape: tuple[int, ...],
    labels: Labels,
    bounds: Ball,
    queries: int,
    random: np.random.Generator,
) -> tuple[Images, Margins, Places]:
    """Vertical stripes at the ball's corners, then squares set to a corner.

    The images that are scored are changed in place, in the square alone, and changed back where
    that was no gain; they are copied only when rows leave.
    """
    n, channels, height, width = shape
    best = np.where(random.random((n, channels, 1, width)) < 0.5, bounds.low, bounds.high)
    least = margin(score(best), labels)
    used, at = np.ones(n, dtype=np.int64), np.flatnonzero(least >= 0)
    live, near = best[at], bounds.take(at)
    for query in range(1, queries):
        side = _side(FIRST["linf"] * _shrunk(query / queries), height, width)
        top = random.integers(0, height - side[0] + 1, n)[at]
        left = random.integers(0, width - side[1] + 1, n)[at]
        signs = (random.random((n, channels, 1, 1)) < 0.5)[at]
        if len(at) == 0:
            break
        window = _window(top, left, side, channels)
        old, low, high = live[window], near.low[window], near.high[window]
        new = np.where(signs, low, high)
        same = (new == old).all(axis=(1, 2, 3), keepdims=True)  # it would be a query for nothing
        new = np.where(same, np.where(signs, high, low), new)
        live[window] = new
        found = margin(score(live), labels[at])
        used[at] += 1
        worse = found >= least[at]
        live[window] = np.where(worse[:, None, None, None], old, new)
        least[at] = np.where(worse, least[at], found)
        on = least[at] >= 0
        if not on.all():
            best[at[~on]] = live[~on]
            live, at = live[on], at[on]
            near = bounds.take(at)
    best[at] = live
    return best, least, used


def _l2(
    score: Score,
    shape: tuple[int, ...],
    labels: Labels,
    bounds: Ball,
    queries: int,
    random: np.random.Generator,
) -> tuple[Images, Margins, Places]:
    """A tiling of small peaks, then peaks to which the length of another square is moved."""
    n, channels, height, width = shape
    delta = _tiles(shape, random)
    best = _at_full_length(bounds, delta)
    least = margin(score(best), labels)
    used = np.ones(n, dtype=np.int64)
    for query in range(1, queries):
        share = FIRST["l2"] * _shrunk(query / queries)
        side = min(max(round(float(np.sqrt(share * height * width))), 3) | 1, height, width)
        places = random.integers(0, [[height - side + 1], [width - side + 1]] * 2, (4, n))
        signs = np.where(random.random((n, channels, 1, 1)) < 0.5, -1.0, 1.0)
        turned = random.random((n, 1, 1, 1)) < 0.5
        at = np.flatnonzero(least >= 0)
        if len(at) == 0:
            break
        peak = _peak(side)
        shape_of = np.where(turned[at], peak.T, peak) * signs[at]
        moved = _moved(bounds.take(at), best[at], places[:, at], side, shape_of)
        tried = _at_full_length(bounds.take(at), moved)
        found = margin(score(tried), labels[at])
        used[at] += 1
        better = found < least[at]
        best[at[better]], least[at[better]] = tried[better], found[better]
    return best, least, used


def _moved(
    bounds: Ball, best: Images, places: Places, side: int, shape: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The perturbation after one proposal: a second square is emptied, and a peak of `shape`
    (N, C, side, side), on what is there, takes its length and all that the ball still allows."""
    channels, sides = best.shape[1], (side, side)
    delta = best.astype(np.float64) - bounds.centre
    here, there = (_window(top, left, sides, channels) for top, left in (places[:2], places[2:]))
    free = np.maximum(bounds.radius**2 - np.square(delta).sum(axis=(1, 2, 3), keepdims=True), 0)
    inside = delta[here]
    own = np.sqrt(np.square(inside).sum(axis=(2, 3), keepdims=True))
    before = np.square(delta).sum(axis=(2, 3), keepdims=True)
    new = shape + inside / (own + 1e-10)
    delta[there] = 0
    delta[here] = 0
    taken = before - np.square(delta).sum(axis=(2, 3), keepdims=True)  # by both squares
    scale = np.sqrt(np.maximum(taken, 0) + free / channels)
    delta[here] = new * scale / (np.sqrt(np.square(new).sum(axis=(2, 3), keepdims=True)) + 1e-10)
    return delta


def _at_full_length(bounds: Ball, delta: NDArray[np.float64]) -> Images:
    """The images that lie the whole radius away, as far as the range lets them."""
    return bounds.project(bounds.centre + delta * (bounds.radius / (lengths(delta) + 1e-10)))


def _tiles(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float64]:
    """A grid of peaks of random signs over the whole image."""
    n, channels, height, width = shape
    side = max(min(height, width) // TILES, 1)
    peak, delta = _peak(side), np.zeros(shape)
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            signs = np.where(random.random((n, channels, 1, 1)) < 0.5, -1.0, 1.0)
            delta[:, :, top : top + side, left : left + side] = peak * signs
    return delta


def _peak(side: int) -> NDArray[np.float64]:
    """Two opposite bumps, one above the other, of length 1 (the eta of the paper, section 3.4)."""
    halves = [_bump(side // 2, side), -_bump(side - side // 2, side)]
    made = np.concatenate(halves)
    return np.asarray(made / np.sqrt(np.square(made).sum()))


def _bump(height: int, width: int) -> NDArray[np.float64]:
    """Growing rectangles about the middle, each weighing less than the one within it."""
    made = np.zeros((height, width))
    for i in range(max(height, width) // 2 + 1):
        rows = slice(max(height // 2 - i, 0), height // 2 + i + 1)
        columns = slice(max(width // 2 - i, 0), width // 2 + i + 1)
        made[rows, columns] += 1 / (i + 1) ** 2
    return made


def _shrunk(progress: float) -> float:
    """What is left of a square's area at `progress` (0 to 1) of the budget."""
    return float(0.5 ** sum(progress > at for at in HALVINGS))


def _side(share: float, height: int, width: int) -> tuple[int, int]:
    """Sides of a square of this share of the area, in the image's own proportions."""
    return max(1, round(share**0.5 * height)), max(1, round(share**0.5 * width))


def _window(top: Places, left: Places, side: tuple[int, int], channels: int) -> Window:
    """Indices of each row's square, over all channels: (N, C, side, side)."""
    rows = np.arange(len(top))[:, None, None, None]
    down = top[:, None, None, None] + np.arange(side[0])[:, None]
    right = left[:, None, None, None] + np.arange(side[1])
    return rows, np.arange(channels)[:, None, None], down, right
