"""AdamW and its schedule: which parameters decay, and how fast they move at which step.

The schedule is a function of the step alone, so a training that resumes has nothing to restore.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def adamw(weight_decay: float, *modules: nn.Module) -> torch.optim.AdamW:
    """AdamW over all parameters of `modules`; biases, BatchNorm and scales do not decay."""
    every = [p for module in modules for p in module.parameters()]
    decayed = {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay}
    plain = {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, plain], fused=True)


def set_step(optimiser: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Learning rate and first beta for `step` (from 0) of `steps`; `peak` is the highest rate."""
    share, beta = one_cycle(step, steps)
    for group in optimiser.param_groups:
        group["lr"], group["betas"] = share * peak, (beta, 0.999)


def one_cycle(step: int, steps: int) -> tuple[float, float]:
    """Learning rate as a share of its peak, and first beta, at `step` (from 0) of `steps`.

    One cycle (Smith & Topin, 2018) as in torch's OneCycleLR: a fifth of it up from 1/25, the rest
    down to 4e-6, in cosines; beta goes from 0.95 to 0.85 and back.

    >>> [tuple(round(x, 6) for x in one_cycle(step, 20)) for step in (0, 3, 19)]
    [(0.04, 0.95), (1.0, 0.85), (4e-06, 0.95)]
    """
    top = max((0.2 if steps > 5 else 0.5) * steps - 1, 0.0)  # few steps: up for half of them
    if step < top:
        low, share = 4e-2, step / top
    else:
        low, share = 4e-6, 1 - min((step - top) / max(steps - 1 - top, 1.0), 1.0)
    height = (1 - math.cos(math.pi * share)) / 2
    return low + (1 - low) * height, 0.95 - 0.1 * height
