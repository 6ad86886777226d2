"""Checkpoints: all that changes while a network trains; a killed training resumes bit for bit.

A cache beside the stages' outs, which DVC removes: of another training it is dropped, whoever
deletes it loses only time. `checkpoint.json` names the tensors' file and its SHA-256 and is
replaced last, so at any point a whole checkpoint lies there. Never pickles.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from tasks.core.averaging import Average
from tasks.core.errors import DataError
from tasks.core.files import (
    canonical,
    digest,
    first_sha256,
    read_json,
    sha256,
    write_bytes,
    write_json,
)
from tasks.core.params import Section

CHECKPOINTS = Path("checkpoints")  # one folder per training, in the checkout
STATE = "checkpoint.json"


class Position(Section):
    """`checkpoint.json`: where the training stands, and the file that holds its tensors."""

    format: Literal["stillhouse/checkpoint/1"] = "stillhouse/checkpoint/1"
    key: str
    tensors: str
    sha256: str
    epoch: int  # whole epochs done
    step: int  # steps done in the one begun
    total: float  # sum of the losses of those steps
    lines: list[str]  # of the history, as written
    best_epoch: int
    best_accuracy: float
    python: list[Any]  # state of `random`
    numpy: list[Any]
    digest: str = ""  # of all the above


@dataclass
class State:
    """All that changes while a network trains. `loss` is None unless it learns too."""

    net: nn.Module
    loss: nn.Module | None
    optimiser: Optimizer
    average: Average | None
    epoch: int = 0
    step: int = 0
    total: float = 0.0
    lines: list[str] = field(default_factory=list)
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best: dict[str, Tensor] = field(default_factory=dict)


def training_key(
    net: nn.Module, loss: object, tensors: Sequence[Tensor], about: Mapping[str, Any]
) -> str:
    """Hex SHA-256 of all that a training depends on: the network and a loss that learns, with their
    weights, `tensors`, `about`, our code as imported, torch and its threads."""
    seen = hashlib.sha256()
    for module in (net, loss):
        if isinstance(module, nn.Module):
            seen.update(repr(module).encode())
            for name, value in module.state_dict().items():
                seen.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                seen.update(value.numpy().tobytes())
    for value in tensors:
        seen.update(value.numpy().tobytes())
    platform = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    seen.update(canonical({**about, **platform, "code": list(code())}).encode())
    return seen.hexdigest()


def code() -> Iterator[str]:
    """SHA-256 of each of our modules that this process has imported, and of the one that it runs,
    which `python -m` calls `__main__`, as they were when it first asked."""
    found = dict(sys.modules)
    started = found.pop("__main__")
    if started.__spec__ is not None:
        found[started.__spec__.name] = started
    for name, module in sorted(found.items()):
        if name.startswith("tasks.") and module.__file__:
            yield f"{name} {first_sha256(Path(module.__file__))}"


def write_checkpoint(folder: Path, key: str, state: State) -> None:
    """Store `state`; until all of it is on disk, the checkpoint before it stays."""
    tensors = {name: value.detach().clone(memory_format=torch.contiguous_format)
               for name, value in _tensors(state)}  # fmt: skip
    content = save(tensors)
    name = f"{state.epoch}-{state.step}.safetensors"
    write_bytes(folder / name, content)
    version, inner, gauss = random.getstate()
    kind, words, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - what `seeds` has seeded
    position = Position(
        key=key,
        tensors=name,
        sha256=hashlib.sha256(content).hexdigest(),
        epoch=state.epoch,
        step=state.step,
        total=state.total,
        lines=state.lines,
        best_epoch=state.best_epoch,
        best_accuracy=state.best_accuracy,
        python=[version, list(inner), gauss],
        numpy=[kind, np.asarray(words).tolist(), *rest],
    ).model_dump(mode="json")
    write_json(folder / STATE, position | {"digest": digest(position)})
    for file in folder.glob("*-*.safetensors"):
        if file.name != name:
            file.unlink()


def read_checkpoint(folder: Path, key: str, state: State) -> bool:
    """Put the checkpoint of the training `key` into `state`; False if there is none.

    One that is not as it was written is a `DataError`.
    """
    path = folder / STATE
    if not path.is_file():
        return False
    remedy = f"delete {folder}; the training then begins anew"
    try:
        content = read_json(path)
        position = Position.model_validate(content)
    except (DataError, ValidationError):
        raise DataError(f"{path}: truncated or changed since it was written; {remedy}") from None
    if position.key != key:
        return False
    if position.digest != digest(position.model_dump(mode="json") | {"digest": ""}):
        raise DataError(f"{path}: changed since it was written; {remedy}")
    file = folder / Path(position.tensors).name
    if not file.is_file() or sha256(file) != position.sha256:
        raise DataError(f"{file}: truncated or changed since it was written; {remedy}")
    _restore(state, position, load(file.read_bytes()))
    return True


def remove_checkpoint(folder: Path) -> None:
    """All that it was for is stored, or it is another training's: it goes, first of all what makes
    the rest one, so that no half of it is ever found."""
    (folder / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _tensors(state: State) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of `state` under its name."""
    for part, module in (("net", state.net), ("loss", state.loss)):
        for name, value in module.state_dict().items() if module is not None else ():
            yield f"{part}.{name}", value
    for i, parameter in enumerate(_parameters(state.optimiser)):
        for name, value in state.optimiser.state.get(parameter, {}).items():
            yield f"optimiser.{i}.{name}", value
    for i, value in enumerate(state.average.values if state.average else ()):
        yield f"average.{i}", value
    for name, value in state.best.items():
        yield f"best.{name}", value
    yield "random", torch.get_rng_state()


def _restore(state: State, position: Position, tensors: dict[str, Tensor]) -> None:
    """The reverse of `_tensors`, with the numbers of `position`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    state.net.load_state_dict(parts["net"])
    if state.loss is not None:
        state.loss.load_state_dict(parts.get("loss", {}))
    moments = parts.get("optimiser", {})
    for i, parameter in enumerate(_parameters(state.optimiser)):
        state.optimiser.state[parameter] = {
            name.partition(".")[2]: _laid_out_as(parameter, value)
            for name, value in moments.items()
            if name.startswith(f"{i}.")
        }
    for i, value in enumerate(state.average.values if state.average else ()):
        value.copy_(parts["average"][str(i)])
    state.best = parts.get("best", {})
    state.epoch, state.step, state.total = position.epoch, position.step, position.total
    state.lines = position.lines
    state.best_epoch, state.best_accuracy = position.best_epoch, position.best_accuracy
    torch.set_rng_state(parts["random"][""])
    version, inner, gauss = position.python
    random.setstate((version, tuple(inner), gauss))
    np.random.set_state(tuple(position.numpy))  # noqa: NPY002


def _parameters(optimiser: Optimizer) -> Iterator[Tensor]:
    for group in optimiser.param_groups:
        yield from group["params"]


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` in the memory layout of `parameter`: the fused optimiser takes that for granted."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
