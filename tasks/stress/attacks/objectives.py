"""What an attack by gradients climbs, and the gradient itself.

An objective takes raw images (N, C, H, W) and labels (N,), and gives a value per row (N,) to raise
and the logits of the network that is to err, in eval mode. The network itself, its weights and its
mode stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.modalities.vision.networks import ResidualNetwork, folded
from tasks.stress.attacks.balls import Images, Labels

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Score = Callable[[Images], NDArray[np.float32]]
Margins = NDArray[np.float32]
BATCH = 256


def margin(logits: NDArray[np.float32], labels: Labels) -> Margins:
    """True logit minus the best other one (N,): negative where `argmax` is wrong, even in a tie;
    minus infinity where the answer is NaN.

    >>> margin(np.array([[1.0, 3.0], [1.0, 3.0]], dtype=np.float32), np.array([0, 1]))
    array([-2.,  2.], dtype=float32)
    >>> margin(np.ones((2, 2), dtype=np.float32), np.array([0, 1])) < 0
    array([False,  True])
    """
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    found = logits[rows, labels] - others.max(axis=1)
    tie = (found == 0) & (logits.argmax(axis=1) != labels)
    found = np.where(tie, -np.finfo(np.float32).tiny, found)
    return np.where(np.isnan(found), -np.inf, found).astype(np.float32)


def cross_entropy(network: nn.Module) -> Objective:
    """Cross-entropy of the true class."""
    answer = _lean(network)

    def objective(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = answer(images)
        return F.cross_entropy(logits, labels, reduction="none"), logits

    return objective


def low_margin(network: nn.Module) -> Objective:
    """The margin's opposite, which has a slope even where cross-entropy has none left."""
    answer = _lean(network)

    def objective(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = answer(images)
        true = logits.gather(1, labels[:, None])[:, 0]
        hidden = F.one_hot(labels, logits.shape[1]).bool()
        return logits.masked_fill(hidden, -torch.inf).amax(1) - true, logits

    return objective


def disagreement(student: nn.Module, teacher: nn.Module) -> Objective:
    """The teacher's probability of the true class minus the student's (DIVA, Hao et al., 2022)."""
    answer, reference = _lean(student), _lean(teacher)

    def objective(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, taught = answer(images), reference(images)
        gap = F.softmax(taught, 1) - F.softmax(logits, 1)
        return gap.gather(1, labels[:, None])[:, 0], logits

    return objective


def _lean(network: nn.Module) -> nn.Module:
    """The same function in eval mode; of our own networks a copy that is a fifth faster, without
    BatchNorm and without gradients of weights."""
    if isinstance(network, ResidualNetwork):
        return folded(network).requires_grad_(False)
    return network.eval()


def slope(objective: Objective, images: Images, labels: Labels) -> tuple[Images, Margins, Margins]:
    """The gradient of `objective` by the images, its value (N,) and the margin (N,) there.

    A gradient that does not exist or is not finite is zero.
    """
    x = torch.from_numpy(np.ascontiguousarray(images)).requires_grad_(True)
    value, logits = objective(x, torch.from_numpy(labels))
    found = None
    if value.requires_grad:
        found = torch.autograd.grad(value.sum(), x, allow_unused=True)[0]
    steep = np.zeros_like(images) if found is None else found.nan_to_num(0, 0, 0).numpy()
    return steep, value.detach().numpy(), margin(logits.detach().numpy(), labels)


def gradients(network: nn.Module, images: Images, labels: Labels) -> Images:
    """The gradient of the margin by each image (N, C, H, W)."""
    objective = low_margin(network)
    parts = [
        slope(objective, images[i : i + BATCH], labels[i : i + BATCH])[0]
        for i in range(0, len(labels), BATCH)
    ]
    return np.concatenate(parts)
