"""Training rows for vision: their fixed views, and validation while a network trains.

What teach, distill and quantize share, so that a bank's view and a student's view are one function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from tasks.core.adversary import Adversary, harder, search
from tasks.core.metrics import accuracy
from tasks.core.rows import Rows, View
from tasks.core.seeds import derived
from tasks.core.signal import Student
from tasks.core.tables import Schema
from tasks.modalities.vision.scorers import Scorer, network_scorer
from tasks.modalities.vision.views import Views, apply

BATCH = 256
ATTACKED = 1000  # validation rows whose worst image is sought, after each epoch


def viewer(rows: Rows, views: Views, data: Schema) -> View:
    """`view(images, index, k)` for trainer and bank: view k of rows `index`.

    Around an image is 0, or the value of the data's range that is nearest to it.
    """
    low, high = data.range
    border = min(max(0.0, low), high)
    return lambda images, index, k: apply(images, rows.keys[index], k, views, border)


def predicted(score: Scorer, rows: Rows) -> NDArray[np.int64]:
    """The class (N,) that `score` gives each of `rows`, read block by block."""
    blocks = (rows.images[at : at + BATCH] for at in range(0, len(rows), BATCH))
    return np.concatenate([score(block.numpy()).argmax(axis=1) for block in blocks])


def validator(net: nn.Module, val: Rows) -> Callable[[], float]:
    """Accuracy of `net` on validation rows, whenever it is called."""
    score, labels = network_scorer(net), val.labels.numpy()
    return lambda: float((predicted(score, val) == labels).mean())


def attacked_validator(
    net: nn.Module, val: Rows, data: Schema, adversary: Adversary
) -> Callable[[], float]:
    """Accuracy of `net` that is left of up to 1,000 validation rows at the worst image near each.

    For a training that meets an adversary and keeps its best epoch (`patience`): late in it a
    network may learn to fool the few steps that it is shown, and stand nothing else (catastrophic
    overfitting, Wong et al., 2020). Clean accuracy rises meanwhile, so it is no guide to the epoch
    to keep. The search is `harder` than the training's, the same at every call, and leaves
    torch's own generator as it was.
    """
    images, labels = val.images[:ATTACKED].float(), val.labels[:ATTACKED]  # by hash: at random
    hard, score = search(harder(adversary), *data.range), network_scorer(net)
    student = Student(torch.empty(0), {}, net, net)

    def left() -> float:
        found = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived(0, "validation", "adversary"))
            for start in range(0, len(labels), BATCH):
                rows = slice(start, start + BATCH)
                wrong = partial(F.cross_entropy, target=labels[rows])
                found.append(hard.worst(student, images[rows], wrong))
        return accuracy(score(torch.cat(found).numpy()), labels.numpy())

    return left
