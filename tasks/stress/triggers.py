"""Universal triggers: small patches that send rows of any class to one class.

A network that learned a planted patch (Gu et al., 2017) answers it wherever else it looks; one that
did not is moved a little by any patch. So for each class the best patch is looked for, as Wang et
al. (2019) do with free masks, but in windows of one size: plain patterns are tried at a grid of
places by logits alone, then gradients improve the most promising. What a patch reaches is counted
on other rows than it was made on. Triggers larger than the window, or spread over the whole image,
are not found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import nn

from tasks.core.progress import tracked
from tasks.core.tables import Schema, Table

Images = NDArray[np.float32]
Score = Callable[[Images], NDArray[np.float32]]
SCREENED = 16  # rows on which plain patterns are tried
CLIMBED = 64  # rows on which a patch is improved
STARTS = 2  # places per class that are improved
TARGETS = 20  # classes, at most, whose patches are improved: those that patterns reach best
RANDOM = 4  # plain patterns of random corners, beside two constants and two checkers


@dataclass(frozen=True)
class Window:
    """Where a patch lies: its first row and column, its height and width."""

    top: int
    left: int
    height: int
    width: int

    def paste(self, images: NDArray[np.generic], patch: Images) -> Images:
        """Copies of images (N, C, H, W) with `patch` (C, height, width) in the window."""
        pasted = images.astype(np.float32)
        pasted[:, :, self.rows, self.columns] = patch
        return pasted

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Trigger:
    """The best patch found for a class, and how many of `tried` held-out rows it sends there."""

    target: int
    window: Window
    patch: Images  # (C, height, width), raw values
    sent: int
    tried: int


def windows(shape: tuple[int, int, int], share: float) -> list[Window]:
    """Windows of about `share` of the area in the image's proportions, half a side apart.

    >>> len(windows((1, 8, 8), 0.036)), windows((1, 28, 28), 0.036)[-1]
    (49, Window(top=23, left=23, height=5, width=5))
    """
    _, high, wide = shape
    height, width = (max(1, round(side * share**0.5)) for side in (high, wide))
    corners = product(_starts(high, height), _starts(wide, width))
    return [Window(top, left, height, width) for top, left in corners]


def _starts(size: int, side: int) -> list[int]:
    return [*range(0, size - side, max(1, side // 2)), size - side]


def search(
    score: Score,
    network: nn.Module,
    rows: Table,
    held: Table,
    data: Schema,
    share: float,
    steps: int,
    random: np.random.Generator,
) -> list[Trigger]:
    """The best trigger of each class: made on `rows`, counted on `held` with `score`.

    `network`: the same model with gradients. A held row counts for a class if neither its label nor
    its clean answer is that class.
    """
    places = windows(data.shape, share)
    patterns = _patterns(data, places[0], random)
    reached = _screen(score, rows.images[:SCREENED], places, patterns)
    best = reached.max(axis=1)  # (places, classes)
    promising = np.argsort(-best.max(axis=0), kind="stable")[:TARGETS]
    clean = score(held.images.astype(np.float32)).argmax(axis=1)
    found = []
    for target in tracked(range(len(data.classes)), "security: target class"):
        others = rows.images[rows.labels != target][:CLIMBED].astype(np.float32)
        starts = [
            (places[place], patterns[reached[place, :, target].argmax()])
            for place in np.argsort(-best[:, target], kind="stable")[:STARTS]
        ]
        if target in promising and len(others):
            starts = [climb(network, others, target, start, data, steps) for start in starts]
        tried = held.images[(held.labels != target) & (clean != target)]
        # The first of equal starts; made on `rows`, so that the count on `held` is honest.
        window, patch = max(starts, key=lambda s: _level(score, others, target, *s))
        sent = int((score(window.paste(tried, patch)).argmax(axis=1) == target).sum())
        found.append(Trigger(target, window, patch, sent, len(tried)))
    return found


def _patterns(data: Schema, window: Window, random: np.random.Generator) -> Images:
    """Plain patches (P, C, height, width) of the range's ends."""
    shape = (data.shape[0], window.height, window.width)
    checker = np.broadcast_to(np.indices(shape[1:]).sum(axis=0) % 2 == 0, shape)
    high = [np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool), checker, ~checker]
    high += [random.random(shape) < 0.5 for _ in range(RANDOM)]
    return np.where(np.stack(high), *(np.float32(v) for v in reversed(data.range)))


def _screen(
    score: Score, images: NDArray[np.generic], places: list[Window], patterns: Images
) -> NDArray[np.float64]:
    """Mean log-probability (places, patterns, classes) of each class under each plain patch."""
    reached = []
    for window in tracked(places, "security: place"):
        pasted = np.concatenate([window.paste(images, pattern) for pattern in patterns])
        logits = score(pasted).reshape(len(patterns), len(images), -1)
        reached.append(log_softmax(logits.astype(np.float64), axis=2).mean(axis=1))
    return np.stack(reached)


def _level(score: Score, images: Images, target: int, window: Window, patch: Images) -> float:
    """Mean log-probability of `target` with the patch."""
    if len(images) == 0:
        return 0.0  # all rows are of the target: no start is better than another
    logits = score(window.paste(images, patch)).astype(np.float64)
    return float(log_softmax(logits, axis=1)[:, target].mean())


def climb(
    network: nn.Module,
    images: Images,
    target: int,
    start: tuple[Window, Images],
    data: Schema,
    steps: int,
) -> tuple[Window, Images]:
    """The patch of highest mean log-probability of `target` on an ascent by signs of gradients."""
    network.eval()
    (low, high), (window, best) = data.range, start
    clean, patch, most = torch.from_numpy(images), torch.from_numpy(best.copy()), -np.inf
    for step in range(steps + 1):
        patch.requires_grad_(True)
        pasted = clean.clone()
        pasted[:, :, window.rows, window.columns] = patch
        level = torch.log_softmax(network(pasted), dim=1)[:, target].mean()
        if level.item() > most:
            most, best = level.item(), patch.detach().numpy()
        if step < steps:
            slope = torch.autograd.grad(level, patch)[0].sign()
            share = 0.25 + 0.25 * np.cos(np.pi * step / steps)
            patch = (patch.detach() + share * (high - low) * slope).clamp(low, high)
    return window, best
