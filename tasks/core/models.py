"""A model on disk: `spec.json` beside `weights.safetensors` or `model.onnx`. Nothing executable.

The spec says what the network is, what it expects and where it comes from; the weights' SHA-256
in it makes the pair inseparable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tasks.core.errors import DataError
from tasks.core.files import read_json, sha256, write_bytes, write_json
from tasks.core.params import Section, check
from tasks.core.tables import Schema

WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"
MODELS = Path("models")


class Architecture(Section):
    """A residual CNN: one stage per width, `blocks` residual blocks in each."""

    family: Literal["residual"] = "residual"
    widths: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(min_length=1)
    blocks: int = Field(default=1, ge=1, le=8)
    stride: Literal[1, 2] = 1  # of the stem: at 2 every layer sees a quarter of the pixels


class Normalisation(Section):
    """Raw values become (x - mean) / std inside the network."""

    mean: float
    std: float = Field(gt=0)


class Origin(Section):
    """What a model learned from: a name and the SHA-256 of that model's weights."""

    name: str
    sha256: str


class ModelSpec(Section):
    """`spec.json`. `bytes` counts float32 weights; `flops` is for one row; both None if unknown."""

    format: Literal["stillhouse/model/1"] = "stillhouse/model/1"
    name: str
    kind: Literal["torch", "onnx"]
    architecture: Architecture | None  # None for a black box
    normalisation: Normalisation | None
    data: Schema
    parameters: int
    bytes: int
    flops: int | None
    sha256: str
    learned_from: Origin | None = None
    fingerprint: str | None = None  # digest of the data it was trained on
    created: str | None = None  # ISO date, stated by whoever gave the model


def weights_path(folder: Path, spec: ModelSpec) -> Path:
    """The file that holds the weights of `spec`."""
    return folder / (WEIGHTS if spec.kind == "torch" else ONNX)


def write_weights(path: Path, state: dict[str, Tensor]) -> str:
    """Write a state dict as safetensors; returns its SHA-256."""
    tensors = {k: v.detach().contiguous().cpu() for k, v in sorted(state.items())}
    write_bytes(path, save(tensors))
    return sha256(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read safetensors; a pickle or a truncated file is refused, never opened."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the stage that writes it") from None
    except SafetensorError as error:
        raise DataError(
            f"{path}: not a safetensors file ({error}); save the weights with safetensors"
        ) from None


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Write `spec.json`."""
    write_json(folder / "spec.json", spec.model_dump(mode="json"))


def read_spec(folder: Path) -> ModelSpec:
    """Read `spec.json` and check that the weights beside it are the ones it names."""
    path = folder / "spec.json"
    spec = check(ModelSpec, read_json(path), where=str(path))
    weights = weights_path(folder, spec)
    if not weights.is_file():
        raise DataError(f"{weights}: missing, though {path} names it; restore it")
    if sha256(weights) != spec.sha256:
        raise DataError(f"{weights}: is not the file that {path} names; restore the pair")
    return spec


def parameters(state: dict[str, Tensor]) -> int:
    """Trainable numbers in a state dict: BatchNorm's running statistics do not count."""
    buffers = ("running_mean", "running_var", "num_batches_tracked", "mean", "std")
    return sum(v.numel() for k, v in state.items() if k.split(".")[-1] not in buffers)


def finite(state: dict[str, Tensor]) -> bool:
    """No weight is NaN or infinite."""
    return all(bool(torch.isfinite(v).all()) for v in state.values() if v.is_floating_point())
