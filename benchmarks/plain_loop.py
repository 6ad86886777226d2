"""What one writes without us: a DataLoader over a TensorDataset, AdamW, OneCycleLR, the default
memory format. It runs in a process of its own, in which nothing of our trainer has run."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.workload import (
    BATCH,
    DATA,
    LEARNING,
    STUDENTS,
    TEACHER,
    THREADS,
    VIEW,
    VIEWS,
    network,
    random_rows,
)
from tasks.core.rows import Rows, View
from tasks.modalities.vision.networks import ResidualNetwork
from tasks.modalities.vision.training import viewer

SAID = "said.npy"  # the teacher's logits of `VIEW`, where our side has written them


@cache
def _prepared(folder: Path) -> tuple[Rows, View, ResidualNetwork, Tensor]:
    """Rows, views, the teacher and what it said; before the first measurement of this process."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    rows = random_rows()
    said = torch.from_numpy(np.load(folder / SAID, allow_pickle=False))
    return rows, viewer(rows, VIEWS, DATA), _default_format(network(TEACHER).eval()), said


def seconds(folder: Path, student: int, teacher: bool, low: bool) -> float:
    """Seconds an image of student number `student`, under the teacher itself or what it said."""
    rows, view, above, said = _prepared(folder)
    net = _default_format(network(STUDENTS[student]).train())
    dataset = TensorDataset(rows.images[:].float(), rows.labels, torch.arange(len(rows)))
    loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True)
    rate, decay = LEARNING["learning_rate"], LEARNING["weight_decay"]
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=len(loader) + 1)
    start = time.perf_counter()
    for raw, labels, index in loader:
        images = view(raw, index.numpy(), VIEW)
        with torch.no_grad():
            truth = above(images) if teacher else said[index]
        soft = F.log_softmax(truth / 4, dim=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = net(images)
        ours = F.log_softmax(logits.float() / 4, dim=1)
        guided = F.kl_div(ours, soft, reduction="batchmean", log_target=True) * 16
        loss = 0.9 * guided + 0.1 * F.cross_entropy(logits.float(), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return (time.perf_counter() - start) / len(rows)


def _default_format(net: ResidualNetwork) -> ResidualNetwork:
    """`net` as PyTorch lays it out where nobody asks for channels-last."""
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return net
