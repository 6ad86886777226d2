"""Weights in int8 and int4: how they are rounded, packed, restored and executed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tasks.core.session import open_session, score
from tasks.core.tables import Schema, Table
from tasks.quantize.contract import shipped
from tasks.quantize.layers import layers, values
from tasks.quantize.weight_only import Bits, rounded, weight_only

BOTH: tuple[Bits, ...] = (8, 4)


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    """Of three output channels: bell-shaped, with one far value, and all zero."""
    draw = np.random.default_rng(0).normal(0, 0.2, (3, 5, 3, 3)).astype(np.float32)
    draw[1, 0, 0, 0] = 2.0
    draw[2] = 0
    return draw


@pytest.mark.parametrize("bits", BOTH)
def test_integers_use_their_range_and_a_zero_channel_stays_zero(
    bits: Bits, weight: np.ndarray
) -> None:
    integers, scale = rounded(weight, 0, bits)

    assert scale.shape == (3, 1, 1, 1)
    assert (scale > 0).all()
    assert not integers[2].any()
    assert integers.max() == {8: 127, 4: 7}[bits]
    assert integers.min() >= {8: -127, 4: -8}[bits]


def test_int8_is_off_by_half_a_step_at_most(weight: np.ndarray) -> None:
    integers, scale = rounded(weight, 0, 8)

    assert (np.abs(integers * scale - weight) <= scale / 2 * (1 + 1e-5)).all()


def test_int4_clips_where_that_loses_less(weight: np.ndarray) -> None:
    integers, scale = rounded(weight, 0, 4)
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    plain = largest / 7
    error = ((integers * scale - weight) ** 2).sum(axis=(1, 2, 3))[:2]
    plain_error = ((np.rint(weight / np.where(plain > 0, plain, 1)) * plain - weight) ** 2).sum(
        axis=(1, 2, 3)
    )[:2]

    assert (scale[:2] < plain[:2]).all()
    assert (error < plain_error).all()
    assert error[0] < 0.95 * plain_error[0]


def test_a_scale_belongs_to_an_output_channel_of_each_operator() -> None:
    node = helper.make_node
    draw = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    names = ("gemm", "turned", "matmul")
    graph = helper.make_graph(
        [
            node("Gemm", ["x", "gemm"], ["a"]),
            node("Gemm", ["a", "turned"], ["b"], transB=1),
            node("MatMul", ["b", "matmul"], ["y"]),
            node("MatMul", ["x", "b"], ["unused"]),  # no stored weight: no layer
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [4, 4])],
        [helper.make_tensor_value_info("y", 1, [4, 4])],
        [numpy_helper.from_array(draw, name) for name in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    assert [(layer.name, layer.axis) for layer in layers(model)] == [
        ("gemm", 1), ("turned", 0), ("matmul", 1),
    ]  # fmt: skip
    small = weight_only(model, 8)
    assert {name: values(small, f"{name}:scale").shape for name in names} == {
        "gemm": (1, 4), "turned": (4, 1), "matmul": (1, 4),
    }  # fmt: skip
    x = np.eye(4, dtype=np.float32)
    before = open_session(model.SerializeToString()).run(["y"], {"x": x})[0]
    after = open_session(small.SerializeToString()).run(["y"], {"x": x})[0]
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()


def test_int4_takes_half_a_byte_and_the_opset_that_knows_it(
    floats: onnx.ModelProto, data: Schema
) -> None:
    files = {bits: onnx.load_from_string(shipped(weight_only(floats, bits), data)) for bits in BOTH}

    packed = [t for t in files[4].graph.initializer if t.data_type == TensorProto.INT4]
    assert len(packed) == 7
    assert all(len(t.raw_data) == -(-int(np.prod(t.dims)) // 2) for t in packed)
    assert [entry.version for entry in files[4].opset_import] == [21]
    assert [entry.version for entry in files[8].opset_import] == [20]
    for model in files.values():
        onnx.checker.check_model(model, full_check=True)


def test_layers_may_differ(floats: onnx.ModelProto) -> None:
    first, second, third = (layer.name for layer in layers(floats)[:3])

    model = weight_only(floats, {first: 4, second: 8})

    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds[f"{first}:stored"] == TensorProto.INT4
    assert kinds[f"{second}:stored"] == TensorProto.INT8
    assert kinds[third] == TensorProto.FLOAT


@pytest.mark.parametrize("bits", BOTH)
def test_the_file_says_what_the_rounded_weights_say(
    bits: Bits, floats: onnx.ModelProto, val_rows: Table
) -> None:
    """The weights rounded by hand, in a float32 graph."""
    by_hand = onnx.ModelProto()
    by_hand.CopyFrom(floats)
    axes = {layer.name: layer.axis for layer in layers(floats)}
    for tensor in by_hand.graph.initializer:
        if tensor.name in axes:
            integers, scale = rounded(numpy_helper.to_array(tensor), axes[tensor.name], bits)
            tensor.CopyFrom(
                numpy_helper.from_array((integers * scale).astype(np.float32), tensor.name)
            )

    expected, _ = score(open_session(by_hand.SerializeToString()), val_rows.images)
    found, _ = score(open_session(weight_only(floats, bits).SerializeToString()), val_rows.images)

    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("bits", BOTH)
def test_onnx_runtime_folds_what_restores_the_weights(
    bits: Bits, floats: onnx.ModelProto, data: Schema, tmp_path: Path
) -> None:
    """So a file of fewer bytes takes the time of the float one: the same nodes are executed."""
    executed = []
    for i, graph in enumerate((floats, weight_only(floats, bits))):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{i}.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(shipped(graph, data), options, providers=["CPUExecutionProvider"])
        executed.append([n.op_type for n in onnx.load(str(tmp_path / f"{i}.onnx")).graph.node])

    assert sorted(executed[0]) == sorted(executed[1])
    assert "Cast" not in executed[1]
