"""Banking: a model is asked for its logits of every view of every training row, block by block.

What is stored is compared with what the model said, as it will be read back, while it is written.
`bank.json` comes last: without it, or with one that names other bytes, nothing here is ever used.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tasks.core.bank import INFO, SUFFIX, Bank, BankForm, BankInfo, Fidelity
from tasks.core.errors import TeacherError
from tasks.core.files import whole, write_json
from tasks.core.progress import tracked
from tasks.core.rows import Rows, View
from tasks.core.stored import Stream, streamed

FULL = BankForm()
FAITHFUL = 0.9999  # cosine to the model's own logits, below which a bank of all classes is refused
FileName = Literal["logits", "classes", "flipped"]


@dataclass
class Comparison:
    """Running figures of what was stored against what was said."""

    rows: int = 0
    cosines: float = 0.0
    least: float = 1.0
    agreed: int = 0

    def add(self, said: Tensor, kept: Tensor) -> None:
        """Two blocks of logits (n, classes)."""
        cosine = F.cosine_similarity(said.double(), kept.double(), eps=1e-12)
        cosine = torch.where((said == kept).all(1), 1.0, cosine)  # zeros have no direction
        self.rows += len(said)
        self.cosines += float(cosine.sum())
        self.least = min(self.least, float(cosine.min()))
        self.agreed += int((said.argmax(1) == kept.argmax(1)).sum())

    def fidelity(self) -> Fidelity:
        return Fidelity(
            cosine_min=round(self.least, 9),
            cosine_mean=round(self.cosines / self.rows, 9),
            agreement=round(self.agreed / self.rows, 9),
        )


def write_bank(
    folder: Path,
    rows: Rows,
    model: str,
    views: dict[str, int | bool],
    view: View,
    score: Callable[[NDArray[np.generic], NDArray[np.int64]], NDArray[np.float32]],
    form: BankForm = FULL,
    above: Bank | None = None,
    hand_on: bool = False,
    batch: int = 256,
    folds: int | None = None,
) -> BankInfo:
    """Score every view of every row and store the logits in `form`.

    `view(images, index, k)` gives view k of the raw images of rows `index`, `score(images, index)`
    the model's logits (n, classes) of it.
    `above`: the bank that the model learned from; its rows that this model loses are marked, and
    with `hand_on` it goes along, with those it carries. `folds` is noted: of how many networks the
    answers are, each about rows that it never saw. Logits that are not finite, or that `form`
    cannot hold, are a `TeacherError`.
    """

    def said(k: int, start: int) -> Tensor:
        index = np.arange(start, min(start + batch, len(rows)))
        images = view(rows.images[start : start + batch].float(), index, k)
        return torch.from_numpy(score(images.numpy(), index))

    classes, count = said(0, 0).shape[1], int(views["count"])
    form.fits(classes)
    compared = Comparison()
    starts = [(k, start) for k in range(count) for start in range(0, len(rows), batch)]
    with ExitStack() as stack:
        files = _files(folder, stack, count * len(rows), classes, form)
        if above is not None:
            stream = streamed(folder / f"flipped{SUFFIX}", "flipped", (len(rows),), torch.uint8)
            files["flipped"] = stack.enter_context(stream)
        for k, start in tracked(starts, f"bank of {folder.parent.name}, batch"):
            logits = said(k, start)
            kept = _stored(folder, files, logits, form)
            compared.add(logits, kept)
            if above is not None and k == 0:
                files["flipped"].write(_lost(rows.labels, start, kept, above))
        fidelity = compared.fidelity()
        if form.top is None and fidelity.cosine_min < FAITHFUL:
            raise TeacherError(
                f"{folder}: as {form.dtype} the logits differ from the model's (cosine "
                f"{fidelity.cosine_min:.5f}); set teach.bank.dtype: bfloat16, or retrain the model"
            )
    info = BankInfo(
        model=model,
        rows=rows.digest,
        views=views,
        form=form,
        classes=classes,
        fidelity=fidelity,
        files={name: stream.sha256() for name, stream in files.items()},
        above=_handed(folder, above) if above is not None and hand_on else (),
        folds=folds,
    )
    write_json(folder / INFO, info.model_dump(mode="json"))
    print(
        f"bank of {folder.parent.name}: {count} views of {len(rows):,} rows as {form}, "
        f"cosine {fidelity.cosine_mean:.6f} (least {fidelity.cosine_min:.6f}) to the model, "
        f"argmax equal on {100 * fidelity.agreement:.2f} %"
    )
    return info


def _files(
    folder: Path, stack: ExitStack, count: int, classes: int, form: BankForm
) -> dict[FileName, Stream]:
    """The files of `count` rows of logits, open until `stack` closes."""
    width = classes if form.top is None else form.top + 1
    shapes: dict[FileName, tuple[tuple[int, int], torch.dtype]] = {
        "logits": ((count, width), getattr(torch, form.dtype))
    }
    if form.top is not None:
        shapes["classes"] = ((count, form.top), form.integers(classes))
    return {
        name: stack.enter_context(streamed(folder / (name + SUFFIX), name, shape, dtype))
        for name, (shape, dtype) in shapes.items()
    }


def _stored(folder: Path, files: dict[FileName, Stream], logits: Tensor, form: BankForm) -> Tensor:
    """Write a block; returns it as it will be read back."""
    values, places = form.packed(logits)
    if not bool(torch.isfinite(values).all()):
        if not bool(torch.isfinite(logits).all()):
            raise TeacherError(f"{folder}: the model gives logits that are not finite; retrain it")
        raise TeacherError(
            f"{folder}: logits up to {float(logits.abs().max()):.3g} are beyond {form.dtype}; "
            "set teach.bank.dtype: bfloat16"
        )
    files["logits"].write(values)
    if places is not None:
        files["classes"].write(places)
    return form.unpacked(values, places, logits.shape[1])


def _lost(labels: Tensor, start: int, kept: Tensor, above: Bank) -> Tensor:
    """1 for each row whose label `above` has right and `kept` (n, classes) has not, else 0."""
    index = torch.arange(start, start + len(kept))
    true = labels[index]  # -1, of a row without a label, is no model's answer
    lost = (above.said(index, 0).argmax(1) == true) & (kept.argmax(1) != true)
    return lost.to(torch.uint8)


def _handed(folder: Path, above: Bank) -> tuple[str, ...]:
    """Copy `above` and the banks that it carries into `folder`; returns whose they are."""
    chain = (above, *above.above)
    for place, bank in enumerate(chain, start=1):
        target = folder / str(place)
        files = {name: digest for name, digest in bank.info.files.items() if name != "flipped"}
        for name in files:
            with whole(target / (name + SUFFIX)) as scratch:
                shutil.copyfile(bank.folder / (name + SUFFIX), scratch)
        info = bank.info.model_copy(update={"files": files, "above": ()})
        write_json(target / INFO, info.model_dump(mode="json"))
    return tuple(bank.info.model for bank in chain)
