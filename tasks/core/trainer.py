"""One readable training loop: the teacher's, every rung's, and that of quantization-aware tuning.

A batch is an index. The loss sees logits, labels and the signal of the models above for the very
view that the network saw, and never knows where the signal came from. A training that was killed
resumes from its checkpoint with the same bits; torchrun's processes share each batch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO

import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor, nn

from tasks.core.averaging import Average
from tasks.core.checkpoint import (
    State,
    read_checkpoint,
    remove_checkpoint,
    training_key,
    write_checkpoint,
)
from tasks.core.errors import DataError, StillhouseError
from tasks.core.files import write_bytes, write_json
from tasks.core.layers import Taps
from tasks.core.memory import keep_freed_memory
from tasks.core.optimiser import adamw, one_cycle, set_step
from tasks.core.parallel import World, joined
from tasks.core.params import Section
from tasks.core.progress import Pace
from tasks.core.rows import Rows, View
from tasks.core.seeds import derived
from tasks.core.signal import Batch, Loss, Outputs, Signal, Student


class Training(Section):
    """Hyper-parameters of one training, all in plain units."""

    epochs: int = Field(ge=1)
    batch: int = Field(default=128, ge=2)
    learning_rate: float = Field(gt=0)  # peak of the one-cycle schedule
    weight_decay: float = Field(default=5e-4, ge=0)  # decoupled (AdamW)
    seed: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16", "auto"] = (
        "float32"  # of forward passes, not of losses
    )
    ema: float = Field(default=0.0, ge=0, lt=1)  # decay a step of averaged weights; 0: none
    patience: int | None = Field(default=None, ge=1)  # epochs without a gain on validation rows
    checkpoint: int = Field(default=500, ge=0)  # steps between checkpoints; 0: none

    @property
    def low(self) -> bool:
        """Whether forward passes are in bfloat16; `auto`: where the CPU computes in it."""
        return self.precision == "bfloat16" or (self.precision == "auto" and computes_bfloat16())


def computes_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16; one that does not takes ten times as long in it."""
    known = torch.cpu.get_capabilities()
    return any(bool(known.get(unit)) for unit in ("avx512_bf16", "amx_bf16", "bf16"))


class TrainingError(StillhouseError):
    """The loss is not finite: the run stops at once."""

    exit_code = 3


def train(
    net: nn.Module,
    rows: Rows,
    loss: Loss,
    training: Training,
    *,
    view: View,
    validate: Callable[[], float],
    history: Path,
    what: str,
    signal: Signal | None = None,
    weights: Tensor | None = None,
    layers: Sequence[str] = (),
    checkpoints: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Train `net` in place; one JSON line per epoch goes to `history` as it happens.

    `view(images, index, k)` gives view k of raw images; `signal(images, index, k)` what the models
    above say of it; `validate()` the accuracy on validation rows. Epoch e shows view e to every
    row, so a bank of K views is used in K epochs. `weights` (N,) of mean 1 weight the rows;
    `layers` of `net` are what `Student.features` shows. A `loss` that is a module learns too.

    With `ema` it is the averaged weights that are validated and kept; with `patience` those of the
    best epoch. `checkpoints` is the folder of this training's checkpoints, and of the batch whose
    loss was not finite (`TrainingError`). The last one holds the end, so that nothing is trained
    twice if what comes after is killed: whoever has stored it all removes it. `about` names all
    that decides the result and is seen neither in `net` and `loss` nor in `rows`: the models above,
    views, losses, validation rows.
    """
    keep_freed_memory()
    world = joined()
    _check(rows, training, weights, world, what)
    learning = loss if isinstance(loss, nn.Module) else None
    optimiser = adamw(training.weight_decay, net, *([learning] if learning else []))
    state = State(net, learning, optimiser, Average(net, training.ema) if training.ema else None)
    known = {**(about or {}), "training": training.model_dump(exclude={"checkpoint"}),
             "low": training.low, "rows": rows.digest, "layers": list(layers),
             "processes": world.size}  # fmt: skip
    key = training_key(net, loss, [rows.labels, *([] if weights is None else [weights])], known)
    if checkpoints is not None:
        resumed = read_checkpoint(checkpoints, key, state)
        world.wait()  # all have read it
        if world.first and not resumed:
            remove_checkpoint(checkpoints)
    history.parent.mkdir(parents=True, exist_ok=True)
    file = history if world.first else Path(os.devnull)
    asked = Asked(net, world, training.low)
    with world.synchronised(net), Taps(net, layers) as taps, file.open("w") as lines:
        _Run(
            state, rows, loss, training, view, validate, signal, weights, asked, taps, world, what,
            checkpoints, key, lines,
        ).fit()  # fmt: skip
    net.eval()


def _check(rows: Rows, training: Training, weights: Tensor | None, world: World, what: str) -> None:
    """A `DataError` if the batches cannot be made."""
    if training.batch > len(rows):
        raise DataError(
            f"{what}: batch {training.batch} is larger than the {len(rows)} training rows; "
            "lower it in params.yaml"
        )
    if training.batch % world.size:
        raise DataError(
            f"{what}: batch {training.batch} cannot be shared among {world.size} processes; "
            f"make it a multiple of {world.size} in params.yaml"
        )
    if training.low and not computes_bfloat16():
        raise DataError(
            f"{what}: this CPU does not compute in bfloat16; "
            "set precision: auto or float32 in params.yaml"
        )
    if weights is not None and weights.shape != (len(rows),):
        raise DataError(
            f"{what}: {tuple(weights.shape)} weights for {len(rows)} training rows; give one a row"
        )


class Asked(nn.Module):
    """A network as loss and trainer ask it: its forward pass in bfloat16 if `low`, each process on
    its share of the rows; logits (N, classes) of all of them in float32."""

    def __init__(self, net: nn.Module, world: World, low: bool) -> None:
        super().__init__()
        self.net, self.world, self.low = net, world, low

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low):
            logits: Tensor = self.net(self.world.share(images))
        return self.world.whole(logits.float())


@dataclass(frozen=True)
class _Run:
    """One training: what it is given, and the `state` that it changes."""

    state: State
    rows: Rows
    loss: Loss
    training: Training
    view: View
    validate: Callable[[], float]
    signal: Signal | None
    weights: Tensor | None
    asked: Asked
    taps: Taps
    world: World
    what: str
    checkpoints: Path | None
    key: str
    lines: TextIO

    @property
    def steps(self) -> int:
        """Steps of one epoch: the last short batch is dropped."""
        return len(self.rows) // self.training.batch

    def fit(self) -> None:
        """Epoch after epoch, from where `state` stands to the end."""
        state = self.state
        self.lines.writelines(state.lines)
        self.lines.flush()
        done = state.epoch * self.steps + state.step
        pace = Pace(self.what, self.training.epochs, self.steps, self.training.batch, done)
        while state.epoch < self.training.epochs and not self._stale():
            state.net.train()
            for index in self._batches():
                state.total += self._step(index)
                state.step += 1
                if self.world.first:
                    pace.step(state.epoch, state.step, state.total / state.step)
                self._checkpoint()
            line = self._finish_epoch()
            if self.world.first:
                pace.epoch(state.epoch - 1, line["loss"], line["val_accuracy"])
        self._checkpoint(last=True)
        if state.best:
            state.net.load_state_dict(state.best)
        elif state.average:
            state.average.swap()

    def _batches(self) -> Iterator[Tensor]:
        """The batches of this epoch that are still to come, as indices of rows."""
        seed = derived(self.training.seed, "order", self.state.epoch)
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed))
        for step in range(self.state.step, self.steps):
            yield order[step * self.training.batch :][: self.training.batch]

    def _step(self, index: Tensor) -> float:
        """One batch of rows `index` (N,): forward, backward, update. Returns its loss."""
        state, optimiser = self.state, self.state.optimiser
        at = state.epoch * self.steps + state.step
        set_step(optimiser, self.training.learning_rate, at, self.training.epochs * self.steps)
        batch = self._batch(index)
        value = self.loss(self._student(batch.images), batch)
        number = float(value.detach())
        if not math.isfinite(number):
            self._fail(number, index, batch)
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        self.world.add_gradients(state.net)
        optimiser.step()
        if state.average:
            state.average.update(at)
        return number

    def _batch(self, index: Tensor) -> Batch:
        """What the loss sees of rows `index`, as the network sees it in this epoch."""
        epoch, world = self.state.epoch, self.world
        seen = self.view(self.rows.images[index], index.numpy(), epoch)
        images = seen.to(torch.float32, memory_format=torch.channels_last)
        above: tuple[Outputs, ...] = ()
        if self.signal is not None:
            said = self.signal(world.share(images), world.share(index), epoch)
            above = tuple(world.gathered(outputs) for outputs in said)
        weights = None if self.weights is None else self.weights[index]
        return Batch(images, self.rows.labels[index], above, weights)

    def _student(self, images: Tensor) -> Student:
        """The outputs of the network for `images`, in float32."""
        logits = self.asked(images)
        features = {name: self.world.whole(x.float()) for name, x in self.taps.features.items()}
        return Student(logits, features, self.asked, self.state.net)

    def _finish_epoch(self) -> dict[str, int | float]:
        """Validate, remember the best weights, and write the epoch's line."""
        state = self.state
        accuracy = self._validated()
        rate, _ = one_cycle((state.epoch + 1) * self.steps, self.training.epochs * self.steps)
        line: dict[str, int | float] = {
            "epoch": state.epoch + 1,
            "loss": round(state.total / self.steps, 6),
            "val_accuracy": round(accuracy, 6),
            "learning_rate": round(rate * self.training.learning_rate, 8),
        }
        state.lines.append(json.dumps(line) + "\n")
        self.lines.write(state.lines[-1])
        self.lines.flush()
        state.epoch, state.step, state.total = state.epoch + 1, 0, 0.0
        return line

    def _validated(self) -> float:
        """Accuracy of the weights that would be kept; those of the best epoch are set aside."""
        state = self.state
        with state.average.shown() if state.average else nullcontext():
            accuracy = self.validate()
            if self.training.patience is not None and accuracy > state.best_accuracy:
                state.best_accuracy, state.best_epoch = accuracy, state.epoch + 1
                state.best = {k: v.detach().clone() for k, v in state.net.state_dict().items()}
        return accuracy

    def _stale(self) -> bool:
        """No gain on validation rows for `patience` epochs."""
        patience = self.training.patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    def _checkpoint(self, last: bool = False) -> None:
        """Store the state, if it is time."""
        every, state = self.training.checkpoint, self.state
        at = state.epoch * self.steps + state.step
        due = every and (last or at % every == 0)
        if self.checkpoints is not None and due and self.world.first:
            write_checkpoint(self.checkpoints, self.key, state)

    def _fail(self, number: float, index: Tensor, batch: Batch) -> NoReturn:
        """Save the batch whose loss is not finite, and stop."""
        epoch, step = self.state.epoch + 1, self.state.step + 1
        rate = self.state.optimiser.param_groups[0]["lr"]
        said = f"{self.what}: the loss is {number} in epoch {epoch}, step {step}"
        kept = ""
        if self.checkpoints is not None:
            file = self.checkpoints / "failed.safetensors"
            kept = f"; the batch is in {file}"
            if self.world.first:
                tensors = {"images": batch.images, "labels": batch.labels, "index": index}
                tensors |= {f"above.{i}": outputs.logits for i, outputs in enumerate(batch.above)}
                write_bytes(file, save({k: v.clone(memory_format=torch.contiguous_format)
                                        for k, v in tensors.items()}))  # fmt: skip
                position = {"epoch": epoch, "step": step, "learning_rate": rate}
                write_json(file.with_suffix(".json"), position | {"loss": str(number)})
        raise TrainingError(f"{said}{kept}; lower its learning_rate in params.yaml")
