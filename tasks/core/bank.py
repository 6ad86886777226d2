"""The bank: a model's logits for K fixed views of each training row, computed once, used by all.

`logits.safetensors` holds one float16 tensor (K, N, classes); `bank.json` says whose logits, of
which rows and views. A bank of another model, data or views is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tasks.core.errors import DataError, TeacherError
from tasks.core.files import read_json, sha256, write_bytes, write_json
from tasks.core.params import Section, check
from tasks.core.progress import tracked
from tasks.core.rows import Rows, View
from tasks.core.signal import Outputs

LOGITS = "logits.safetensors"


class BankInfo(Section):
    """`bank.json`."""

    format: Literal["stillhouse/bank/1"] = "stillhouse/bank/1"
    model: str  # SHA-256 of the weights whose logits these are
    rows: str  # SHA-256 over the row ids, in order
    views: dict[str, int | bool]
    sha256: str  # of logits.safetensors


@dataclass(frozen=True)
class Bank:
    """A bank in memory: `logits` has shape (K, N, classes), float16."""

    info: BankInfo
    logits: Tensor

    def signal(self, _: Tensor, index: Tensor, view: int) -> tuple[Outputs, ...]:
        """What the model said of rows `index` under `view`, in float32."""
        return (Outputs(self.logits[view % len(self.logits), index].float()),)


def write_bank(
    folder: Path,
    rows: Rows,
    model: str,
    views: dict[str, int | bool],
    view: View,
    score: Callable[[NDArray[np.generic]], NDArray[np.float32]],
    batch: int = 1024,
) -> BankInfo:
    """Score every view of every row and store the logits.

    `view(images, index, k)` gives view k of raw images; `score` gives the model's logits.
    """
    count = int(views["count"])
    blocks = []
    for k in tracked(range(count), "bank view"):
        parts = []
        for i in range(0, len(rows), batch):
            index = np.arange(i, min(i + batch, len(rows)))
            parts.append(score(view(rows.images[i : i + batch].float(), index, k).numpy()))
        blocks.append(np.concatenate(parts).astype(np.float16))
    logits = torch.from_numpy(np.stack(blocks))
    if not bool(torch.isfinite(logits).all()):
        raise TeacherError(f"{folder}: the model gives logits that are not finite; retrain it")
    write_bytes(folder / LOGITS, save({"logits": logits}))
    info = BankInfo(model=model, rows=rows.digest, views=views, sha256=sha256(folder / LOGITS))
    write_json(folder / "bank.json", info.model_dump(mode="json"))
    return info


def read_bank(folder: Path, rows: Rows, model: str, views: dict[str, int | bool]) -> Bank:
    """Open a bank; a `DataError` says which of model, rows, views or bytes does not match."""
    path = folder / "bank.json"
    info = check(BankInfo, read_json(path), where=str(path))
    remedy = f"run the stage that writes {folder}"
    if info.model != model:
        raise DataError(f"{folder}: a bank of another model ({info.model[:12]}); {remedy}")
    if info.rows != rows.digest:
        raise DataError(f"{folder}: a bank of other training rows; {remedy}")
    if info.views != views:
        raise DataError(f"{folder}: a bank of other views {info.views}, not {views}; {remedy}")
    file = folder / LOGITS
    if not file.is_file() or sha256(file) != info.sha256:
        raise DataError(f"{file}: truncated or changed since it was written; {remedy}")
    try:
        with safe_open(file, "pt") as stored:
            return Bank(info, stored.get_tensor("logits"))
    except SafetensorError as error:
        raise DataError(f"{file}: not a safetensors file ({error}); {remedy}") from None
