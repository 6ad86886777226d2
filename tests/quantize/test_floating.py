"""What is executed: the twin of every scheme, and layers that stay float among int8 ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from tasks.core.session import open_session, score
from tasks.core.tables import Schema, Table
from tasks.core.twin import Twin
from tasks.quantize.calibrate import Calibrated, calibrate, calibration_rows
from tasks.quantize.contract import shipped
from tasks.quantize.dynamic import dynamic
from tasks.quantize.halves import half
from tasks.quantize.layers import layers
from tasks.quantize.params import Calibration
from tasks.quantize.static import quantized
from tasks.quantize.weight_only import weight_only


@pytest.fixture(scope="module")
def calibrated(floats: onnx.ModelProto, train_rows: Table) -> Calibrated:
    return calibrate(floats, calibration_rows(train_rows, 64), Calibration(rows=64))


@pytest.mark.parametrize(
    "scheme",
    ["float16", "bfloat16", "weights8", "weights4", "weights_mixed", "mixed", "float32"],
)
def test_the_twin_of_every_scheme_says_what_onnx_runtime_says(
    scheme: str,
    floats: onnx.ModelProto,
    calibrated: Calibrated,
    data: Schema,
    val_rows: Table,
) -> None:
    names = [layer.name for layer in layers(floats)]
    graphs: dict[str, Callable[[], onnx.ModelProto]] = {
        "float32": lambda: floats,
        "float16": lambda: half(floats, "float16"),
        "bfloat16": lambda: half(floats, "bfloat16"),
        "weights8": lambda: weight_only(floats, 8),
        "weights4": lambda: weight_only(floats, 4),
        "weights_mixed": lambda: weight_only(floats, {n: 4 if n < "c" else 8 for n in names}),
        "mixed": lambda: quantized(calibrated, floating=[n for n in names if n != names[2]]),
    }
    content = shipped(graphs[scheme](), data, 0.7)
    twin = Twin(onnx.load_from_string(content))

    ours, _ = score(open_session(content), val_rows.images)
    images = torch.from_numpy(val_rows.images).float().requires_grad_()
    theirs = twin(images)
    theirs.sum().backward()

    apart = np.abs(theirs.detach().numpy() - ours)
    if scheme == "mixed":  # a value between two int8 may be rounded either way
        assert apart.max() < 0.1 * ours.std()
        assert (apart > 1e-4).mean() < 0.05
    else:
        assert apart.max() <= 1e-4
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("place", range(7))
def test_onnx_runtime_makes_no_layer_int8_that_was_left_float(
    place: int,
    floats: onnx.ModelProto,
    calibrated: Calibrated,
    data: Schema,
    val_rows: Table,
    tmp_path: Path,
) -> None:
    """All others are int8, so that it finds the layer between two of them."""
    name = layers(floats)[place].name
    content = shipped(quantized(calibrated, floating={name}), data)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "executed.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    executed = [n.op_type for n in onnx.load(str(tmp_path / "executed.onnx")).graph.node]
    kinds = ["Gemm" if place == 6 else "Conv"]
    assert [kind for kind in executed if kind in ("Conv", "Gemm")] == kinds
    assert sum(kind in ("QLinearConv", "QGemm") for kind in executed) == 6
    as_written = score(open_session(content, optimise=False), val_rows.images)[0]
    optimised = score(open_session(content), val_rows.images)[0]
    twin = Twin(onnx.load_from_string(content))
    with torch.no_grad():
        ours = twin(torch.from_numpy(val_rows.images)).numpy()
    for logits in (optimised, ours):  # a tie that is rounded the other way moves a whole step
        assert (np.abs(logits - as_written).max(axis=1) > 1e-4).mean() <= 0.05


def test_plain_arithmetic_dequantizes_signed_values_too() -> None:
    """Between convolutions without Relu, where a zero point is not 0."""
    rng = np.random.default_rng(0)
    names = ["a", "b", "c"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [source, name], [target])
            for source, name, target in zip(["x", "t", "u"], names, ["t", "u", "y"], strict=True)
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, ["batch", 2, 4, 4])],
        [helper.make_tensor_value_info("y", 1, ["batch", 2, 4, 4])],
        [
            numpy_helper.from_array(rng.normal(size=(2, 2, 1, 1)).astype(np.float32), name)
            for name in names
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    images = rng.normal(size=(64, 2, 4, 4)).astype(np.float32)

    mixed = quantized(calibrate(model, images, Calibration(rows=64)), floating={"b"})

    kinds = [n.op_type for n in mixed.graph.node]
    assert kinds.count("Sub") == kinds.count("Cast") == 1
    used = {name for n in mixed.graph.node for name in n.input} | {"y"}
    assert all(used.intersection(n.output) for n in mixed.graph.node)
    before, after = (
        open_session(m.SerializeToString()).run(None, {"x": images})[0] for m in (model, mixed)
    )
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_the_twin_of_int8_arithmetic_differs_where_a_tie_is_rounded_only(
    scheme: str, floats: onnx.ModelProto, calibrated: Calibrated, data: Schema, val_rows: Table
) -> None:
    graph = dynamic(floats) if scheme == "dynamic" else quantized(calibrated)
    content = shipped(graph, data)
    twin = Twin(onnx.load_from_string(content))

    ours, _ = score(open_session(content), val_rows.images)
    with torch.no_grad():
        theirs = twin(torch.from_numpy(val_rows.images)).numpy()

    assert (np.abs(theirs - ours).max(axis=1) > 1e-4).mean() <= 0.05
