"""A model on disk: `spec.json` beside what it is made of (`FILES`). Nothing executable.

The spec says what the network is, what it expects and where it comes from; the SHA-256 in it, of
the weights and all else that decides an answer, makes the two inseparable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tasks.core.errors import DataError
from tasks.core.files import digest, read_json, sha256, write_bytes, write_json
from tasks.core.params import Section, check
from tasks.core.tables import Schema

WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"
ENSEMBLE = "ensemble.json"
MODELS = Path("models")

Kind = Literal["torch", "onnx", "huggingface", "ensemble"]
FILES: dict[Kind, tuple[str, ...]] = {  # what decides an answer; the weights first
    "torch": (WEIGHTS,),
    "onnx": (ONNX,),
    "huggingface": ("model.safetensors", "config.json", "preprocessor_config.json"),
    "ensemble": (ENSEMBLE,),
}


class Architecture(Section):
    """A residual CNN: one stage per width, `blocks` residual blocks in each.

    >>> Architecture(widths=(8, 16, 32)).stage_strides
    (1, 2, 2)
    """

    family: Literal["residual"] = "residual"
    widths: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(min_length=1)
    blocks: int = Field(default=1, ge=1, le=8)
    stride: Literal[1, 2] = 1  # of the stem: at 2 every layer sees a quarter of the pixels
    strides: tuple[Literal[1, 2], ...] | None = None  # of each stage; null: 1, then 2 in all others

    @model_validator(mode="after")
    def _one_each(self) -> Architecture:
        if self.strides is not None and len(self.strides) != len(self.widths):
            raise ValueError(
                f"'strides' names {len(self.strides)} and 'widths' {len(self.widths)} stages; "
                "give each stage one of both"
            )
        return self

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """The stride of the first block of each stage."""
        return self.strides or (1, *[2] * (len(self.widths) - 1))


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
    kind: Kind
    architecture: Architecture | None  # of the residual family; None for every other model
    normalisation: Normalisation | None
    data: Schema
    parameters: int
    bytes: int
    flops: int | None
    sha256: str
    learned_from: Origin | None = None
    warm_start: Origin | None = None  # whose weights it started from
    fingerprint: str | None = None  # digest of the data it was trained on
    created: str | None = None  # ISO date, stated by whoever gave the model


class Member(Section):
    """One model of an ensemble: its folder below the ensemble's, its digest and its weight."""

    folder: str = Field(pattern=r"^members/\d+$")
    sha256: str  # of the member's own spec
    weight: float = Field(gt=0, le=1)


class Ensemble(Section):
    """`ensemble.json`: the members whose probabilities are mixed; their weights sum to 1."""

    format: Literal["stillhouse/ensemble/1"] = "stillhouse/ensemble/1"
    members: tuple[Member, ...] = Field(min_length=1)


def weights_path(folder: Path, spec: ModelSpec) -> Path:
    """The file that holds the weights of `spec`; of an ensemble, those of its members."""
    return folder / FILES[spec.kind][0]


def content_sha256(folder: Path, kind: Kind) -> str:
    """What `spec.json` names: the SHA-256 of the one file of `kind`, or that of all of theirs."""
    found = {name: sha256(folder / name) for name in FILES[kind]}
    return digest(found) if len(found) > 1 else found[FILES[kind][0]]


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
    """Read `spec.json` and check that what lies beside it is what it names."""
    path = folder / "spec.json"
    spec = check(ModelSpec, read_json(path), where=str(path))
    for name in FILES[spec.kind]:
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: missing, though {path} names it; restore it")
    if content_sha256(folder, spec.kind) != spec.sha256:
        weights = weights_path(folder, spec)
        raise DataError(f"{weights}: is not the file that {path} names; restore the pair")
    return spec


def read_ensemble(folder: Path) -> tuple[Member, ...]:
    """The members that `ensemble.json` names, each checked against the folder that holds it."""
    path = folder / ENSEMBLE
    members = check(Ensemble, read_json(path), where=str(path)).members
    for member in members:
        if read_spec(folder / member.folder).sha256 != member.sha256:
            raise DataError(
                f"{folder / member.folder}: is not the member that {path} names; restore both"
            )
    return members


def parameters(state: dict[str, Tensor]) -> int:
    """Trainable numbers in a state dict: BatchNorm's running statistics do not count."""
    buffers = ("running_mean", "running_var", "num_batches_tracked", "mean", "std")
    return sum(v.numel() for k, v in state.items() if k.split(".")[-1] not in buffers)


def finite(state: dict[str, Tensor]) -> bool:
    """No weight is NaN or infinite."""
    return all(bool(torch.isfinite(v).all()) for v in state.values() if v.is_floating_point())
