"""Training rows for vision: their fixed views, and validation while a network trains.

What teach, distill and quantize share, so that a bank's view and a student's view are one function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tasks.core.adversary import Adversary, harder, search
from tasks.core.metrics import accuracy
from tasks.core.rows import Rows, View
from tasks.core.seeds import derived
from tasks.core.signal import Student
from tasks.core.tables import Schema, Table
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.views import Views, apply

BATCH = 256
ATTACKED = 1000  # validation rows whose worst image is sought, after each epoch


def viewer(rows: Rows, views: Views) -> View:
    """`view(images, index, k)` for trainer and bank: view k of rows `index`."""
    return lambda images, index, k: apply(images, rows.keys[index], k, views)


def validator(net: nn.Module, val: Table) -> Callable[[], float]:
    """Accuracy of `net` on validation rows, whenever it is called."""
    score = network_scorer(net)
    return lambda: accuracy(score(val.images), val.labels)


def attacked_validator(
    net: nn.Module, val: Table, data: Schema, adversary: Adversary
) -> Callable[[], float]:
    """Accuracy of `net` that is left of up to 1,000 validation rows at the worst image near each.

    For a training that meets an adversary and keeps its best epoch (`patience`): late in it a
    network may learn to fool the few steps that it is shown, and stand nothing else (catastrophic
    overfitting, Wong et al., 2020). Clean accuracy rises meanwhile, so it is no guide to the epoch
    to keep. The search is `harder` than the training's, the same at every call, and leaves
    torch's own generator as it was.
    """
    some = val.take(np.arange(min(len(val), ATTACKED)))  # by hash: a random sample
    images, labels = torch.from_numpy(some.images.astype(np.float32)), torch.from_numpy(some.labels)
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
        return accuracy(score(torch.cat(found).numpy()), some.labels)

    return left
