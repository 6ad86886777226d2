"""The twin: an ONNX file executed in torch agrees with ONNX Runtime, and gradients pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tasks.core.errors import DataError
from tasks.core.operators import OPERATORS, fake_quantize
from tasks.core.session import open_session, score
from tasks.core.twin import Twin
from tasks.quantize.dynamic import dynamic
from tasks.quantize.params import Calibration
from tasks.quantize.static import static

RNG = np.random.default_rng(0)
F32 = np.float32
torch.set_num_threads(1)  # tiny tensors: a second thread would only wait


def graph(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], shape: tuple[int | str, ...]
) -> onnx.ModelProto:
    """A model of one input `x` and one output `y` of unknown rank."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def network() -> onnx.ModelProto:
    """Normalisation, a convolution, a residual sum, a stride, an average and a linear layer."""
    draw = np.random.default_rng(1)
    constants = {
        "mean": np.array(90, F32),
        "std": np.array(60, F32),
        "a": draw.normal(0, 0.4, (6, 3, 3, 3)).astype(F32),
        "a_bias": draw.normal(0, 0.4, 6).astype(F32),
        "b": draw.normal(0, 0.3, (6, 6, 3, 3)).astype(F32),
        "b_bias": draw.normal(0, 0.3, 6).astype(F32),
        "c": draw.normal(0, 1, (3, 6)).astype(F32),
        "c_bias": draw.normal(0, 1, 3).astype(F32),
        "axes": np.array([2, 3]),
    }
    node = helper.make_node
    nodes = [
        node("Sub", ["x", "mean"], ["centred"]),
        node("Div", ["centred", "std"], ["normal"]),
        node("Conv", ["normal", "a", "a_bias"], ["t1"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("Relu", ["t1"], ["t2"]),
        node("Conv", ["t2", "b", "b_bias"], ["t3"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("Add", ["t2", "t3"], ["t4"]),
        node("Relu", ["t4"], ["t5"]),
        node("ReduceMean", ["t5", "axes"], ["t6"], keepdims=0),
        node("Gemm", ["t6", "c", "c_bias"], ["y"], transB=1),
    ]
    model = graph(nodes, constants, ("batch", 3, 10, 12))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    )
    usual = Twin(model)(torch.from_numpy(images(64, 9))).mean(0).numpy()
    bias = next(t for t in model.graph.initializer if t.name == "c_bias")
    bias.CopyFrom(numpy_helper.from_array(constants["c_bias"] - usual, "c_bias"))
    return model  # every class wins somewhere


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random images, so that logits differ from row to row."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 5, 6)).astype(np.uint8)
    return coarse.repeat(2, axis=2).repeat(2, axis=3)


@pytest.fixture(scope="module")
def models() -> dict[str, onnx.ModelProto]:
    floats = network()
    calibration = Calibration(rows=64, method="minmax")
    return {
        "float32": floats,
        "dynamic": dynamic(floats),
        "static": static(floats, images(64, 5), calibration),
    }


@pytest.mark.parametrize("scheme", ["float32", "dynamic", "static"])
def test_the_twin_says_what_onnx_runtime_says(
    models: dict[str, onnx.ModelProto], scheme: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(models[scheme], str(path))
    session, twin = open_session(path), Twin.load(path)
    blocks = np.split(images(2000), 8)  # a dynamic range spans a batch: both see the same ones

    expected = np.concatenate([score(session, block)[0] for block in blocks])
    with torch.no_grad():
        logits = torch.cat([twin(torch.from_numpy(block)) for block in blocks]).numpy()

    assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.999
    assert np.abs(logits - expected).max() < (0.1 if scheme == "static" else 1e-4) * expected.std()
    assert len(np.unique(expected.argmax(1))) == 3


@pytest.mark.parametrize("scheme", ["float32", "dynamic", "static"])
def test_gradients_reach_every_pixel(models: dict[str, onnx.ModelProto], scheme: str) -> None:
    x = torch.from_numpy(images(8)).float().requires_grad_()

    Twin.load(models[scheme])(x).logsumexp(1).sum().backward()

    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert float((x.grad != 0).float().mean()) > 0.9


def test_int8_gradients_point_where_float_gradients_do(
    models: dict[str, onnx.ModelProto],
) -> None:
    found = []
    for scheme in ("float32", "static"):
        x = torch.from_numpy(images(16)).float().requires_grad_()
        Twin.load(models[scheme])(x)[:, 0].sum().backward()
        assert x.grad is not None
        found.append(x.grad.flatten())

    assert float(torch.cosine_similarity(found[0], found[1], dim=0)) > 0.9


def test_a_clipped_value_passes_no_gradient() -> None:
    x = torch.tensor([-3.0, 0.26, 3.0], requires_grad=True)

    y = fake_quantize(x, torch.tensor(0.01), 0.0, -128, 127) * 0.01
    y.sum().backward()

    assert y.tolist() == pytest.approx([-1.28, 0.26, 1.27])
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


def test_a_scale_gets_the_gradient_of_lsq() -> None:
    x, scale = torch.tensor([0.34, 9.0]), torch.tensor(0.1, requires_grad=True)

    (fake_quantize(x, scale, 0.0, -64, 64) * scale).sum().backward()

    # Inside: round(x/s) - x/s = 3 - 3.4; outside: the clip value.
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(-0.4 + 64, rel=1e-5)


def test_a_named_value_is_replaced(models: dict[str, onnx.ModelProto]) -> None:
    twin = Twin.load(models["float32"])
    x = torch.from_numpy(images(4))

    silenced = twin(x, {"c": torch.zeros(3, 6)})

    assert torch.equal(silenced, twin.constants["c_bias"].expand(4, 3))


def test_a_batch_of_none_has_logits_of_none(models: dict[str, onnx.ModelProto]) -> None:
    assert Twin.load(models["static"])(torch.zeros(0, 3, 10, 12)).shape == (0, 3)


def test_only_what_the_logits_need_is_executed() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Erf", ["x"], ["z"])]
    model = graph(nodes, {}, ("n", 3))

    assert Twin(model)(torch.tensor([[-1.0, 0.0, 2.0]])).tolist() == [[0.0, 0.0, 2.0]]


@pytest.mark.parametrize(("domain", "shown"), [("", "ai.onnx::Erf"), ("odd", "odd::Erf")])
def test_an_unknown_operator_is_named(domain: str, shown: str) -> None:
    model = graph([helper.make_node("Erf", ["x"], ["y"], domain=domain)], {}, ("n", 3))

    with pytest.raises(DataError, match=f"cannot execute operator {shown}, which gives 'y'"):
        Twin(model, "student.onnx")


def test_operators_of_an_old_opset_are_not_guessed_at() -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {}, ("n", 3))
    Twin(model, "student.onnx")
    model.opset_import[0].version = 12

    with pytest.raises(DataError, match=r"student\.onnx: made for opset 12, .* 18 or later"):
        Twin(model, "student.onnx")


SHAPE = (2, 4, 7, 9)
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "add": ("Add", [RNG.normal(size=(4, 1, 1))], {}),
    "cast": ("Cast", [], {"to": TensorProto.FLOAT}),
    "clip": ("Clip", [np.array(-0.5), np.array(0.5)], {}),
    "clip below": ("Clip", [np.array(-0.5)], {}),
    "concat": ("Concat", [RNG.normal(size=SHAPE)], {"axis": 1}),
    "conv": ("Conv", [RNG.normal(size=(5, 4, 3, 3)), RNG.normal(size=5)], {}),
    "conv grouped": ("Conv", [RNG.normal(size=(4, 1, 3, 3))],
                     {"group": 4, "strides": [2, 1], "dilations": [1, 2], "pads": [1, 2, 1, 2]}),
    "conv uneven": ("Conv", [RNG.normal(size=(5, 4, 3, 3))], {"pads": [1, 2, 0, 3]}),
    "div": ("Div", [np.array(3.0)], {}),
    "flatten": ("Flatten", [], {}),
    "flatten late": ("Flatten", [], {"axis": 3}),
    "gather": ("Gather", [np.array([[2, 0], [-1, 1]])], {"axis": 1}),
    "average": ("GlobalAveragePool", [], {}),
    "identity": ("Identity", [], {}),
    "matmul": ("MatMul", [RNG.normal(size=(9, 5))], {}),
    "pool": ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "pool ceiling": ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "mul": ("Mul", [RNG.normal(size=(9,))], {}),
    "mean": ("ReduceMean", [np.array([2, 3])], {"keepdims": 0}),
    "mean of all": ("ReduceMean", [], {}),
    "mean of none": ("ReduceMean", [], {"noop_with_empty_axes": 1}),
    "relu": ("Relu", [], {}),
    "reshape": ("Reshape", [np.array([0, -1, 9])], {}),
    "sub": ("Sub", [np.array(0.7)], {}),
    "transpose": ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    "transpose all": ("Transpose", [], {}),
    "unsqueeze": ("Unsqueeze", [np.array([0, -1])], {}),
    "quantize": ("QuantizeLinear", [np.array(0.013), np.array(7, np.int8)], {}),
    "quantize plain": ("QuantizeLinear", [np.array(0.01)], {}),
    "quantize channels": ("QuantizeLinear", [np.array([0.01, 0.02, 0.03, 0.04]),
                                             np.array([0, 1, 2, 3], np.uint8)], {"axis": 1}),
}  # fmt: skip


def ours_and_theirs(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], x: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[Any]]:
    model = graph(nodes, constants, x.shape)
    if nodes[-1].op_type in ("QuantizeLinear", "Shape"):
        integers = {"Shape": TensorProto.INT64}.get(nodes[-1].op_type, TensorProto.UINT8)
        stored = [v for v in constants.values() if v.dtype == np.int8]
        kind = TensorProto.INT8 if stored else integers
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", kind, None))
    theirs = open_session(model.SerializeToString(), optimise=False).run(None, {"x": x})[0]
    return Twin(model)(torch.from_numpy(x)).numpy(), theirs


@pytest.mark.parametrize("name", CASES)
def test_an_operator_follows_onnx_runtime(name: str) -> None:
    operator, operands, attributes = CASES[name]
    constants = {
        f"c{i}": v.astype(F32) if v.dtype == np.float64 else v for i, v in enumerate(operands)
    }
    node = helper.make_node(operator, ["x", *constants], ["y"], **attributes)

    ours, theirs = ours_and_theirs([node], constants, RNG.normal(size=SHAPE).astype(F32))

    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "weight", "bias"),
    [
        ({}, (6, 3), (3,)),
        ({"transB": 1, "alpha": 0.5, "beta": 2.0}, (3, 6), (1, 3)),
        ({"transA": 1}, (4, 3), None),
    ],
)
def test_gemm_follows_onnx_runtime(
    attributes: dict[str, Any], weight: tuple[int, int], bias: tuple[int, ...] | None
) -> None:
    constants = {"w": RNG.normal(size=weight).astype(F32)}
    if bias:
        constants["b"] = RNG.normal(size=bias).astype(F32)
    node = helper.make_node("Gemm", ["x", *constants], ["y"], **attributes)

    ours, theirs = ours_and_theirs([node], constants, RNG.normal(size=(4, 6)).astype(F32))

    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_integer_products_subtract_their_zero_points() -> None:
    node = helper.make_node
    conv = {"w": RNG.integers(-64, 64, (5, 4, 3, 3)).astype(np.int8), "z": np.array(0, np.int8)}
    matrix = {"w": RNG.integers(-64, 64, (9, 5)).astype(np.int8),
              "z": RNG.integers(-3, 3, 5).astype(np.int8)}  # fmt: skip
    x = RNG.normal(size=SHAPE).astype(F32)

    for operator, constants, attributes in (
        ("ConvInteger", conv, {"pads": [1, 1, 1, 1]}),
        ("MatMulInteger", matrix, {}),
    ):
        nodes = [
            node("DynamicQuantizeLinear", ["x"], ["q", "s", "zero"]),
            node(operator, ["q", "w", "zero", "z"], ["t"], **attributes),
            node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
        ]
        ours, theirs = ours_and_theirs(nodes, constants, x)

        np.testing.assert_array_equal(ours, theirs)


def test_a_constant_tensor_quantizes_with_scale_one() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]

    ours, theirs = ours_and_theirs(nodes, {}, np.zeros((2, 3), F32))

    np.testing.assert_array_equal(ours, theirs)


def test_shapes_are_followed_at_run_time() -> None:
    node = helper.make_node
    constants = {"last": np.array(1), "axes": np.array([0]), "rest": np.array([-1]),
                 "front": np.array([0])}  # fmt: skip
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "last"], ["channels"], axis=0),
        node("Unsqueeze", ["channels", "axes"], ["c"]),
        node("Concat", ["rest", "c"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["flat"]),
        node("Unsqueeze", ["flat", "front"], ["u"]),
        node("Squeeze", ["u", "front"], ["y"]),
    ]

    ours, theirs = ours_and_theirs(nodes, constants, RNG.normal(size=SHAPE).astype(F32))

    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER"),
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], auto_pad="VALID"),
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE),
    ],
)
def test_an_attribute_that_the_twin_does_not_know_is_refused(node: onnx.NodeProto) -> None:
    model = graph([node], {"w": np.ones((1, 4, 3, 3), F32)}, SHAPE)

    with pytest.raises(DataError, match="the twin"):
        Twin(model)(torch.zeros(SHAPE))


def test_every_operator_of_the_table_is_tested_here() -> None:
    tested = {case[0] for case in CASES.values()} | {
        "Gemm", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "DequantizeLinear",
        "Shape", "Squeeze",
    }  # fmt: skip

    assert set(OPERATORS) == tested
