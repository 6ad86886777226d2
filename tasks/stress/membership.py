"""Membership inference: does the student's loss betray which rows it was trained on?

The attack by a threshold on the loss (Yeom et al., 2018): of a training row and a row never seen,
how often has the training row the smaller loss? 0.5 is chance. The rate of members found where one
stranger in a hundred is accused (Carlini et al., 2022) tells of the few rows that are known best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from tasks.stress.separation import Scores, auc_bounds, passing

ACCUSED = 0.01  # share of strangers


def losses(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Scores:
    """Cross-entropy of each row (N,) in nats."""
    spread = log_softmax(logits.astype(np.float64), axis=1)
    return np.asarray(-spread[np.arange(len(labels)), labels])


def membership(members: Scores, strangers: Scores, seed: int) -> dict[str, Any]:
    """What the losses of training rows and of test rows tell."""
    return {
        "members": len(members),
        "strangers": len(strangers),
        "auc": auc_bounds(members, strangers, seed),
        "found_at_1_percent": passing(-members, -strangers, ACCUSED),
    }
