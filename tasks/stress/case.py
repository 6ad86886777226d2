"""A case: one shipped student beside its teacher and the test rows, as every family sees it.

Families measure `model.onnx` through `Case.score`. The float network and the teacher are there to
compare with and to take gradients from; nothing here changes any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from tasks.core.errors import DataError
from tasks.core.files import read_json, sha256
from tasks.core.models import MODELS, ModelSpec, read_spec, read_weights
from tasks.core.params import check
from tasks.core.predictions import TEACHER, read_predictions
from tasks.core.reports import Gate
from tasks.core.rows import read_rows
from tasks.core.seeds import generator
from tasks.core.session import open_session, score
from tasks.core.statistics import wilson
from tasks.core.subgroups import SUBGROUPS, read_subgroups
from tasks.core.tables import Schema, Table, read_fingerprint, read_split
from tasks.modalities.vision.networks import build
from tasks.modalities.vision.scorers import Scorer, load_network, load_scorer, network_scorer
from tasks.stress.budget import Budget

SHIP = Path("ship")


@dataclass(frozen=True)
class Case:
    """What is put under stress. Images are raw values (N, C, H, W); logits are (N, classes)."""

    student: str
    model: Path  # the final ONNX file
    session: ort.InferenceSession  # of `model`, one thread
    data: Schema
    test: Table
    student_logits: NDArray[np.float32]  # of the test rows, in table order
    teacher_logits: NDArray[np.float32]  # the same rows, as `evaluate` stored them
    teacher: Scorer
    teacher_network: nn.Module | None  # None where the teacher is an ONNX black box
    float_network: nn.Module  # the float student that `model` was quantized from
    budget: Budget
    subgroups: Mapping[str, NDArray[np.str_]]  # declared column -> value (N,) of each test row
    strangers: NDArray[np.generic]  # images that are none of the data; perhaps none
    seed: int

    def score(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits of the final ONNX file; a `ValueError` if one of them is not finite."""
        return finite(score(self.session, images)[0])

    def sample(self, rows: int) -> NDArray[np.int64]:
        """Sorted positions of `rows` test rows, drawn by `seed`; all if there are fewer."""
        order = generator(self.seed, "stress", "rows").permutation(len(self.test))
        return np.sort(order[:rows]).astype(np.int64)

    def learned(self, rows: int) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """Images and labels of `rows` training rows, drawn by `seed`; all if there are fewer.

        Read from the tables when asked for: memory grows with `rows`, not with the data.
        """
        train = read_rows(self.data)
        order = generator(self.seed, "stress", "learned").permutation(len(train))[:rows]
        index = torch.from_numpy(np.sort(order))
        return train.images[index].numpy(), train.labels[index].numpy()


@dataclass(frozen=True)
class Outcome:
    """What a family found. `results` must be JSON; `results["summary"]` holds flat numbers."""

    rows: int  # test rows that it measured
    results: dict[str, Any]
    gates: tuple[Gate, ...]
    figure: Figure
    kept: Mapping[str, pa.Table] = field(default_factory=dict)  # NAME -> NAME.parquet


def finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """`logits` (N, classes) as they are; a `ValueError` if a row of them holds NaN or infinities.

    An answer that is NaN has no class: argmax would name one all the same.
    """
    bad = int((~np.isfinite(logits).all(axis=1)).sum())
    if bad:
        raise ValueError(f"the model's logits are not finite for {bad} of {len(logits)} rows")
    return logits


def rate(flags: NDArray[np.bool_]) -> dict[str, float]:
    """A share with Wilson's one-sided 95 % bounds, as reports state it."""
    low, high = wilson(int(flags.sum()), flags.size)
    return {"value": float(flags.mean()), "low": low, "high": high}


def load_case(student: str, budget: Budget, seed: int) -> Case:
    """Read a case from the working directory; a file that does not fit is a `DataError`."""
    data = read_fingerprint().data
    test = read_split("test", data)
    if len(test) == 0:
        raise DataError("data/test.parquet: no rows to put a student to the test on; add some")
    folder = SHIP / student
    session = open_session(folder / "model.onnx", threads=1)
    teacher = MODELS / "teacher"
    network = load_network(teacher) if read_spec(teacher).kind == "torch" else None
    return Case(
        student=student,
        model=folder / "model.onnx",
        session=session,
        data=data,
        test=test,
        student_logits=score(session, test.images)[0],
        teacher_logits=read_predictions(TEACHER, test, len(data.classes)),
        teacher=load_scorer(teacher) if network is None else network_scorer(network),
        teacher_network=network,
        float_network=_float_network(folder),
        budget=budget,
        subgroups=read_subgroups(SUBGROUPS, test.rows),
        strangers=read_split("strangers", data).images,
        seed=seed,
    )


def _float_network(folder: Path) -> nn.Module:
    """The float student of a shipped folder, in eval mode."""
    path, weights = folder / "float.json", folder / "float.safetensors"
    spec = check(ModelSpec, read_json(path), where=str(path))
    if spec.architecture is None or spec.normalisation is None:
        raise DataError(f"{path}: names no architecture and normalisation; run quantize")
    state = read_weights(weights)
    if sha256(weights) != spec.sha256:
        raise DataError(f"{weights}: is not the file that {path} names; run quantize")
    network = build(spec.architecture, spec.data, spec.normalisation)
    try:
        network.load_state_dict(state)
    except RuntimeError:
        raise DataError(f"{weights}: does not fit the network of {path}; run quantize") from None
    return network.eval()
