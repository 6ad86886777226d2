"""Sensitivity: one layer at a time, on few rows, told as figures and as a picture."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import onnx
import pytest

from tasks.core.metrics import accuracy, kl
from tasks.core.session import open_session, score
from tasks.core.tables import Table
from tasks.quantize.calibrate import Calibrated, calibrate, calibration_rows
from tasks.quantize.layers import layers
from tasks.quantize.params import Calibration
from tasks.quantize.plot import sensitivity_png
from tasks.quantize.prepare import QUANTIZABLE
from tasks.quantize.sensitivity import (
    WAYS,
    Sensitivity,
    document,
    sensitivities,
    some_rows,
    table,
)
from tasks.quantize.static import quantized
from tasks.quantize.weight_only import weight_only

TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def calibrated(floats: onnx.ModelProto, train_rows: Table) -> Calibrated:
    return calibrate(floats, calibration_rows(train_rows, 64), Calibration(rows=64))


@pytest.fixture(scope="module")
def found(
    floats: onnx.ModelProto, calibrated: Calibrated, val_rows: Table
) -> tuple[Sensitivity, ...]:
    return sensitivities(floats, calibrated, val_rows, TEMPERATURE)


def test_every_layer_is_there_in_the_order_of_the_graph(
    found: tuple[Sensitivity, ...], floats: onnx.ModelProto
) -> None:
    assert [(one.layer, one.weights) for one in found] == [
        (layer.name, layer.weights) for layer in layers(floats)
    ]
    assert all(set(one.costs) == set(WAYS) for one in found)


def test_fewer_bits_cost_more(found: tuple[Sensitivity, ...]) -> None:
    for one in found:
        assert one.costs["weights4"].kl > one.costs["weights8"].kl > 0
        assert one.costs["static"].kl > 0


@pytest.mark.parametrize("way", WAYS)
def test_a_cost_is_the_divergence_of_the_float_student_from_the_changed_one(
    way: str,
    found: tuple[Sensitivity, ...],
    floats: onnx.ModelProto,
    calibrated: Calibrated,
    val_rows: Table,
) -> None:
    one = found[2]
    changed = {
        "static": quantized(calibrated, floating={o.layer for o in found if o is not one}),
        "weights8": weight_only(floats, {one.layer: 8}),
        "weights4": weight_only(floats, {one.layer: 4}),
    }[way]
    before, after = (
        score(open_session(graph.SerializeToString()), val_rows.images)[0] / TEMPERATURE
        for graph in (floats, changed)
    )

    assert one.costs[way].kl == pytest.approx(kl(before, after).mean(), rel=1e-4)
    assert one.costs[way].accuracy_lost == pytest.approx(
        accuracy(before, val_rows.labels) - accuracy(after, val_rows.labels)
    )


def test_one_layer_alone_is_int8(calibrated: Calibrated, floats: onnx.ModelProto) -> None:
    names = {layer.name for layer in layers(floats)}
    for name in names:
        graph = quantized(calibrated, floating=names - {name}).graph
        integers = {
            t.name.removesuffix("_quantized")
            for t in graph.initializer
            if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
        }
        layer = next(
            n for n in graph.node if n.op_type in QUANTIZABLE and n.input[1].startswith(name)
        )
        rounds = [n for n in graph.node if n.op_type == "QuantizeLinear"]

        assert integers == {name}
        assert len(rounds) <= 2, "what enters it and what leaves it"
        made = {n.output[0]: n.op_type for n in graph.node}
        assert made[layer.input[0]] == "DequantizeLinear"


def test_some_rows_are_those_of_the_smallest_hashes(val_rows: Table) -> None:
    order = np.random.default_rng(0).permutation(len(val_rows))

    few = some_rows(val_rows, 30)

    assert sorted(few.rows) == sorted(val_rows.rows)[:30]
    assert set(some_rows(val_rows.take(order), 30).rows) == set(few.rows)
    assert len(some_rows(val_rows, 10_000)) == len(val_rows)


def test_it_repeats_itself_as_a_document_and_as_a_picture(
    found: tuple[Sensitivity, ...],
    floats: onnx.ModelProto,
    calibrated: Calibrated,
    val_rows: Table,
) -> None:
    again = sensitivities(floats, calibrated, val_rows, TEMPERATURE)

    assert document("tiny", 160, again) == document("tiny", 160, found)
    assert sensitivity_png(again) == sensitivity_png(found)
    assert sensitivity_png(found).startswith(b"\x89PNG")


def test_the_table_says_what_the_document_says(found: tuple[Sensitivity, ...]) -> None:
    lines = list(csv.DictReader(io.StringIO(table(found).decode())))
    layers: Any = document("tiny", 160, found)["layers"]

    assert [line["layer"] for line in lines] == [layer["layer"] for layer in layers]
    for line, layer in zip(lines, layers, strict=True):
        assert int(line["weights"]) == layer["weights"]
        for way in WAYS:
            assert float(line[f"{way}_kl"]) == layer[way]["kl"]
            lost = 100 * layer[way]["accuracy_lost"]
            assert float(line[f"{way}_points_lost"]) == pytest.approx(lost)


def test_a_student_without_layers_has_an_empty_picture() -> None:
    assert sensitivity_png(()).startswith(b"\x89PNG")
