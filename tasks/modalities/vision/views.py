"""Fixed views: the augmentation of training rows as a function of (seed, row, k).

View 0 is the row itself. The others shift by up to `shift` pixels and, where the data allows it,
alternate a mirror image. The bank stores the teacher's logits for exactly these views, so what a
student sees and what its teacher said always belong together (FKD, Shen & Xing 2022; FunMatch,
Beyer et al. 2022).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tasks.core.params import Section


class Views(Section):
    """`count` views per row, cycled over epochs."""

    count: int = Field(default=8, ge=1, le=64)
    seed: int = Field(default=0, ge=0)
    shift: int = Field(default=1, ge=0, le=8)
    flip: bool = False


def apply(
    images: Tensor, keys: NDArray[np.uint64], k: int, views: Views, border: float = 0.0
) -> Tensor:
    """View `k` of each image. `images`: (N, C, H, W); `keys`: (N,). Same dtype and shape out.

    What a shift brings in has the value `border`.
    """
    k %= views.count  # the bank holds one cycle
    if k == 0:
        return images
    noise = _mixed(keys, views.seed, k)
    span = 2 * views.shift + 1
    dx = torch.from_numpy((noise % np.uint64(span)).astype(np.int64))
    dy = torch.from_numpy((noise // np.uint64(span) % np.uint64(span)).astype(np.int64))
    h, w = images.shape[2:]
    # Every window of the padded image, as a view of it: whole rows of pixels are copied at a time.
    windows = F.pad(images, [views.shift] * 4, value=border).unfold(2, h, 1).unfold(3, w, 1)
    moved = windows[torch.arange(len(images)), :, dy, dx]
    if views.flip:
        # Alternating flips: half of the rows start mirrored, and each next view turns them over.
        mirrored = torch.from_numpy((((keys & np.uint64(1)) + np.uint64(k)) % np.uint64(2)) == 1)
        moved = torch.where(mirrored[:, None, None, None], moved.flip(3), moved)
    return moved


def _mixed(keys: NDArray[np.uint64], seed: int, k: int) -> NDArray[np.uint64]:
    """splitmix64 over (key, seed, k): well mixed, vectorised, the same everywhere."""
    with np.errstate(over="ignore"):
        z = keys ^ np.uint64((seed * 0x9E3779B97F4A7C15 + k * 0xD1B54A32D192ED03) % 2**64)
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
