"""One readable training loop: the teacher's, every rung's, and that of quantization-aware tuning.

Data lives in tensors; a batch is an index. The loss sees logits, labels and the teacher's signal
for the very view that the network saw, and never knows where the signal came from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.core.errors import DataError, StillhouseError
from tasks.core.params import Section
from tasks.core.rows import Rows, View
from tasks.core.seeds import derived
from tasks.core.signal import Batch, Loss, Signal, Student


class Training(Section):
    """Hyper-parameters of one training, all in plain units."""

    epochs: int = Field(ge=1)
    batch: int = Field(default=128, ge=2)
    learning_rate: float = Field(gt=0)  # peak of the one-cycle schedule
    weight_decay: float = Field(default=5e-4, ge=0)  # decoupled (AdamW)
    seed: int = Field(default=0, ge=0)


class TrainingError(StillhouseError):
    """The loss is not finite: the run stops at once."""

    exit_code = 3


def train(
    net: nn.Module,
    rows: Rows,
    loss: Loss,
    training: Training,
    view: View,
    signal: Signal | None,
    validate: Callable[[], float],
    history: Path,
    what: str,
) -> None:
    """Train `net` in place; one JSON line per epoch goes to `history` as it happens.

    `view(images, index, k)` gives view k of rows `index`; `signal(images, index, k)` what the
    models above say of it; `validate()` the accuracy on validation rows. Epoch e shows view e to
    every row, so a bank of K views is used in K epochs.
    """
    count = len(rows.labels)
    if training.batch > count:
        raise DataError(
            f"{what}: batch {training.batch} is larger than the {count} training rows; "
            "lower it in params.yaml"
        )
    steps = training.epochs * (count // training.batch)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]  # biases, BatchNorm, scales: no decay
    optimiser = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": training.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        fused=True,
    )
    # A fifth of the way up, the rest down; torch divides by zero where a fifth is one step.
    rise = 0.2 if steps > 5 else 0.5
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, training.learning_rate, total_steps=max(steps, 3), pct_start=rise
    )
    history.parent.mkdir(parents=True, exist_ok=True)
    with history.open("w") as lines:
        for epoch in range(training.epochs):
            net.train()
            total = 0.0
            for index in _batches(count, training.batch, derived(training.seed, "order", epoch)):
                images = view(rows.images[index].float(), index.numpy(), epoch)
                above = signal(images, index, epoch) if signal else ()
                batch = Batch(images, rows.labels[index], above)
                value = loss(Student(net(images), forward=net), batch)
                number = float(value.detach())
                if not math.isfinite(number):
                    raise TrainingError(
                        f"{what}: the loss is {number} in epoch {epoch + 1}; "
                        "lower its learning_rate in params.yaml"
                    )
                optimiser.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                total += number
            rows.release()
            accuracy = validate()
            line = {
                "epoch": epoch + 1,
                "loss": round(total / (count // training.batch), 6),
                "val_accuracy": round(accuracy, 6),
                "learning_rate": round(float(schedule.get_last_lr()[0]), 8),
            }
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            print(
                f"{what}: epoch {epoch + 1}/{training.epochs} "
                f"loss {line['loss']:.4f} val {accuracy:.4f}",
                flush=True,
            )
    net.eval()


def _batches(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Index tensors of one shuffled epoch; the last short batch is dropped."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    for start in range(0, count - batch + 1, batch):
        yield order[start : start + batch]
