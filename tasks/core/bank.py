"""The bank: a model's logits for K fixed views of each training row, computed once, used by all.

`bank.json` says whose logits, of which rows and views, in which form, and how near to the model's
own; a bank of anything else is refused by name. A bank may carry those of the models above its
model, in the folders `1/`, `2/`, nearest first. Memory is that of a batch (`tasks.core.stored`).
Nothing here asks a model: `tasks/core/banking.py` does, and writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.core.errors import DataError, ParamsError
from tasks.core.files import read_json, sha256
from tasks.core.params import Section, check
from tasks.core.rows import Rows
from tasks.core.signal import Outputs
from tasks.core.stored import Stored, read_stored

INFO = "bank.json"
SUFFIX = ".safetensors"


class BankForm(Section):
    """`teach.bank`: how every bank of a run is stored. `top`: of how many classes; null: of all."""

    dtype: Literal["float16", "bfloat16"] = "float16"
    top: int | None = Field(default=None, ge=1)

    def __str__(self) -> str:
        return f"{self.dtype}, top {self.top}" if self.top else f"{self.dtype}, all classes"

    def fits(self, classes: int) -> None:
        """Raise `ParamsError` if there are no more classes than `top`."""
        if self.top is not None and self.top >= classes:
            raise ParamsError(
                f"params.yaml: teach.bank.top: {self.top} is not below the {classes} classes; "
                "lower it, or set null for all of them"
            )

    def packed(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is stored of float32 `logits` (N, classes): themselves, or the `top` largest and a
        last one for each of the others, with the classes (N, top) of the former.

        The others share what is left of the probability evenly: the marginal smoothing of FKD
        (Shen & Xing, 2022).

        >>> values, classes = BankForm(top=1).packed(torch.tensor([[0.0, 3.0, 0.0]]))
        >>> values.tolist(), classes.tolist()
        ([[3.0, 0.0]], [[1]])
        """
        dtype = getattr(torch, self.dtype)
        if self.top is None:
            return logits.to(dtype), None
        count = logits.shape[1]
        largest, classes = logits.topk(self.top, dim=1)
        others = logits.scatter(1, classes, -math.inf).logsumexp(1, keepdim=True)
        rest = others - math.log(count - self.top)
        return torch.cat([largest, rest], 1).to(dtype), classes.to(self.integers(count))

    def unpacked(self, values: Tensor, classes: Tensor | None, count: int) -> Tensor:
        """Float32 logits (N, `count`) from what `packed` gave."""
        if classes is None:
            return values.float()
        every = values[:, -1:].float().expand(-1, count)
        return every.scatter(1, classes.long(), values[:, :-1].float())

    def integers(self, count: int) -> torch.dtype:
        """The smallest type that holds a class index."""
        return torch.uint8 if count <= 2**8 else torch.int16 if count <= 2**15 else torch.int32


class Fidelity(Section):
    """What is read back against the model's own float32 logits, over every row and view."""

    cosine_min: float
    cosine_mean: float
    agreement: float  # share of equal argmax


class BankInfo(Section):
    """`bank.json`."""

    format: Literal["stillhouse/bank/2"] = "stillhouse/bank/2"
    model: str  # SHA-256 of the weights whose logits these are
    rows: str  # SHA-256 over the row ids, in order
    views: dict[str, int | bool]
    form: BankForm
    classes: int = Field(ge=2)
    fidelity: Fidelity
    files: dict[Literal["logits", "classes", "flipped"], str]  # name -> SHA-256
    above: tuple[str, ...] = ()  # `model` of the banks in 1/, 2/, nearest first
    folds: int | None = None  # each row's logits are of one of so many networks, that never saw it


@dataclass(frozen=True)
class Bank:
    """`logits` (K·N, classes), or (K·N, top + 1) with `classes` (K·N, top): view after view.

    `flipped` (N,): rows whose label the model above had right on view 0 and this one has wrong;
    None where the model learned from no bank.
    """

    folder: Path
    info: BankInfo
    count: int  # N
    logits: Stored
    classes: Stored | None
    flipped: Tensor | None
    above: tuple[Bank, ...] = ()

    def said(self, index: Tensor, view: int) -> Tensor:
        """Float32 logits (n, classes) of rows `index` (n,) under `view`."""
        at = index + view % int(self.info.views["count"]) * self.count
        classes = None if self.classes is None else self.classes[at]
        return self.info.form.unpacked(self.logits[at], classes, self.info.classes)

    def signal(self, _: Tensor, index: Tensor, view: int) -> tuple[Outputs, ...]:
        """What the model said of rows `index` under `view`; then those above that it carries."""
        return tuple(Outputs(bank.said(index, view)) for bank in (self, *self.above))

    def weights(self, flip_weight: float) -> Tensor | None:
        """1 + `flip_weight` for flipped rows, 1 for others, scaled to mean 1 (N,).

        None where all weigh the same: at 0, and below a model that learned from no bank.
        """
        if not flip_weight or self.flipped is None:
            return None
        weights = 1 + flip_weight * self.flipped.float()
        return weights / weights.mean()


def read_bank(
    folder: Path,
    rows: Rows,
    model: str,
    views: dict[str, int | bool],
    form: BankForm,
) -> Bank:
    """Open a bank and those it carries; a `DataError` says which of model, rows, views, form or
    bytes does not match."""
    own = _read(folder, rows, model, views, form)
    above = tuple(
        _read(folder / str(place), rows, digest, views, form)
        for place, digest in enumerate(own.info.above, start=1)
    )
    return Bank(own.folder, own.info, own.count, own.logits, own.classes, own.flipped, above)


def _read(
    folder: Path, rows: Rows, model: str, views: dict[str, int | bool], form: BankForm
) -> Bank:
    path = folder / INFO
    info = check(BankInfo, read_json(path), where=str(path))
    remedy = f"run the stage that writes {folder}"
    if info.model != model:
        raise DataError(
            f"{folder}: a bank of another model ({info.model[:12]}), not {model[:12]}; {remedy}"
        )
    if info.rows != rows.digest:
        raise DataError(f"{folder}: a bank of other training rows; {remedy}")
    if info.views != views:
        raise DataError(f"{folder}: a bank of other views {info.views}, not {views}; {remedy}")
    if info.form != form:
        raise DataError(f"{folder}: a bank in another form ({info.form}), not {form}; {remedy}")
    for name, digest in info.files.items():
        file = folder / (name + SUFFIX)
        if not file.is_file() or sha256(file) != digest:
            raise DataError(f"{file}: truncated or changed since it was written; {remedy}")
    logits, classes, flipped = (
        read_stored(folder / (name + SUFFIX), name) if name in info.files else None
        for name in ("logits", "classes", "flipped")
    )
    if logits is None:
        raise DataError(f"{path}: names no logits; {remedy}")
    return Bank(
        folder, info, len(rows), logits, classes, None if flipped is None else flipped[:].bool()
    )
