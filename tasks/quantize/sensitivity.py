"""Sensitivity: what each layer costs in fewer bits, while the other layers stay float.

A layer is quantized in three ways: int8 weights and activations by the static quantizer, int8
weights only, int4 weights only. The cost is the mean KL divergence from the float student's
probabilities and the accuracy lost, on validation rows (one layer at a time, as in Wu et al., 2020,
"Integer quantization for deep learning inference"). Ranges are calibrated before, once for all.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import JsonValue

from tasks.core.metrics import accuracy, kl
from tasks.core.session import open_session, score
from tasks.core.tables import Table
from tasks.quantize.calibrate import Calibrated
from tasks.quantize.layers import layers
from tasks.quantize.static import quantized
from tasks.quantize.weight_only import weight_only

WAYS = ("static", "weights8", "weights4")


@dataclass(frozen=True)
class Cost:
    """`kl`: mean over rows, in nats; `accuracy_lost`: of the float student's, negative if more
    rows are right."""

    kl: float
    accuracy_lost: float


@dataclass(frozen=True)
class Sensitivity:
    """A layer, named by its weights, how many they are, and its cost in each of the `WAYS`."""

    layer: str
    weights: int
    costs: dict[str, Cost]


def sensitivities(
    floats: onnx.ModelProto, calibrated: Calibrated, val: Table, temperature: float
) -> tuple[Sensitivity, ...]:
    """Of every layer of `floats`, in its order, on the rows of `val`; logits are divided by
    `temperature`, as those of the file that ships are."""
    names = [layer.name for layer in layers(floats)]
    reference = _logits(floats, val, temperature)
    right = accuracy(reference, val.labels)

    def cost(graph: onnx.ModelProto) -> Cost:
        logits = _logits(graph, val, temperature)
        divergence = float(np.maximum(kl(reference, logits), 0).mean())
        return Cost(divergence, right - accuracy(logits, val.labels))

    return tuple(
        Sensitivity(layer.name, layer.weights, {
            "static": cost(quantized(calibrated, floating=set(names) - {layer.name})),
            "weights8": cost(weight_only(floats, {layer.name: 8})),
            "weights4": cost(weight_only(floats, {layer.name: 4})),
        })
        for layer in layers(floats)
    )  # fmt: skip


def some_rows(val: Table, count: int) -> Table:
    """`count` rows of `val`, those of the smallest hashes."""
    return val.take(np.sort(np.argsort(val.rows, kind="stable")[:count]))


def document(student: str, rows: int, found: Sequence[Sensitivity]) -> dict[str, JsonValue]:
    """`sensitivity.json`."""
    return {
        "format": "stillhouse/sensitivity/1",
        "student": student,
        "rows": rows,
        "layers": list(_entries(found)),
    }


def table(found: Sequence[Sensitivity]) -> bytes:
    """`sensitivity.csv`: a layer a line; KL in nats and points lost, in each of the `WAYS`.

    >>> cost = Cost(kl=0.5, accuracy_lost=0.01)
    >>> layer = Sensitivity("head.weight", 40, {way: cost for way in WAYS})
    >>> print(table([layer]).decode(), end="")
    layer,weights,static_kl,static_points_lost,weights8_kl,weights8_points_lost,weights4_kl,weights4_points_lost
    head.weight,40,0.5,1.0,0.5,1.0,0.5,1.0
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (f"{way}_{what}" for way in WAYS for what in ("kl", "points_lost"))
    writer.writerow(["layer", "weights", *columns])
    for one in found:
        costs = (one.costs[way] for way in WAYS)
        values = (value for cost in costs for value in (cost.kl, 100 * cost.accuracy_lost))
        writer.writerow([one.layer, one.weights, *values])
    return text.getvalue().encode()


def _entries(found: Sequence[Sensitivity]) -> Iterator[JsonValue]:
    for one in found:
        costs: dict[str, JsonValue] = {way: asdict(cost) for way, cost in one.costs.items()}
        yield {"layer": one.layer, "weights": one.weights, **costs}


def _logits(graph: onnx.ModelProto, val: Table, temperature: float) -> NDArray[np.float32]:
    logits, _ = score(open_session(graph.SerializeToString()), val.images)
    return logits / np.float32(temperature)
