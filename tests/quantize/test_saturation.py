"""The proof against what pairs in int16 do, and that our files are within it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tasks.core.tables import Table
from tasks.quantize.calibrate import calibration_rows
from tasks.quantize.dynamic import dynamic
from tasks.quantize.params import Calibration
from tasks.quantize.qat import QuantizationAware
from tasks.quantize.saturation import layers, pair_sums
from tasks.quantize.static import static
from tests.quantize.pairs import conv, graph, matmul, orders, rounded, saturating


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
    tails=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_with_safe_scales_no_input_can_saturate_in_either_order(
    seed: int, shape: tuple[int, int, int, int], tails: float
) -> None:
    rng = np.random.default_rng(seed)
    weights = (rng.normal(size=shape) * np.exp(tails * rng.normal(size=shape))).astype(np.float32)

    integers = rounded(weights)
    (layer,) = layers(conv(integers))

    assert layer.safe
    assert np.abs(integers.astype(int)).max() <= 127
    for rows in orders(integers):
        worst = np.where(rows > 0, 255, 0), np.where(rows < 0, 255, 0)
        for row, high, low in zip(rows, *worst, strict=True):
            noise = rng.integers(0, 256, len(row))
            for x in (high, low, noise):
                exact = int((x * row.astype(np.int64)).sum())
                assert saturating(x.astype(np.uint8), row[None]).tolist() == [exact]


def test_no_half_step_of_rounding_breaks_the_bound() -> None:
    """Pairs of two weights that both round up: 63.5 + 63.5 steps become 64 + 64."""
    weights = np.array([[0.5, 0.5, 0.25, 0.0]], np.float32)

    integers = rounded(weights)

    assert integers.tolist() == [[64, 64, 32, 0]]
    (layer,) = layers(matmul(integers.T))
    assert (layer.highest, layer.safe) == (128 * 255, True)


def test_a_weight_with_light_neighbours_uses_all_levels_and_equal_ones_half() -> None:
    apart = np.array([[1.0, 0.0, 0.0, -1.0], [1.0, 1.0, 0.0, 0.0]], np.float32)

    assert rounded(apart).tolist() == [[127, 0, 0, -127], [64, 64, 0, 0]]


def test_opposite_signs_do_not_add_up() -> None:
    """An activation of 0 silences one of them, so neither helps nor harms the other."""
    low, high = pair_sums(np.array([[100, -120, 5, 6]]))

    assert (low.tolist(), high.tolist()) == ([-120], [100])


def test_the_last_of_an_odd_number_is_alone() -> None:
    assert pair_sums(np.array([[1, 2, 127]]))[1].tolist() == [127]
    assert pair_sums(np.array([[-7]]))[0].tolist() == [-7]


@pytest.mark.parametrize("heavy", [((0, 0), (0, 1)), ((0, 0), (1, 0))])
def test_both_orders_of_a_convolution_are_proven(heavy: tuple[tuple[int, int], ...]) -> None:
    """Two inputs, 1 x 2: heavy weights are neighbours in one order only."""
    weights = np.zeros((1, 2, 1, 2), np.int8)
    for channel, column in heavy:
        weights[0, channel, 0, column] = 127

    (layer,) = layers(conv(weights))

    assert (layer.highest, layer.unsafe) == (2 * 127 * 255, 1)


def test_channels_and_groups_are_told_apart() -> None:
    weights = np.zeros((4, 2, 1, 1), np.int8)
    weights[1, :, 0, 0] = -127
    weights[2, 0, 0, 0], weights[3, 1, 0, 0] = 127, 127

    (layer,) = layers(conv(weights, group=2))

    assert (layer.op, layer.channels, layer.levels) == ("Conv", 4, (-127, 127))
    assert (layer.lowest, layer.highest, layer.unsafe) == (-2 * 127 * 255, 127 * 255, 1)


def test_a_matrix_is_paired_along_k_whichever_way_it_lies() -> None:
    across = np.zeros((4, 2), np.int8)
    across[:2, 1] = 127
    gemm = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "one"], ["b"]),
        helper.make_node("Gemm", ["a", "b"], ["y"], transB=1),
    ]
    turned = graph(
        gemm, ("x", TensorProto.FLOAT, ["rows", 4]), ("y", TensorProto.FLOAT),
        w=across.T.copy(), one=np.float32(1), zero=np.uint8(0),
    )  # fmt: skip

    assert [(m.unsafe, m.channels) for m in layers(matmul(across))] == [(1, 2)]
    assert [(m.unsafe, m.channels) for m in layers(turned)] == [(1, 2)]
    assert [(m.unsafe, m.channels) for m in layers(matmul(np.stack([across, across])))] == [(2, 4)]


def test_what_cannot_be_read_is_not_taken_as_safe() -> None:
    computed = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["a"]),
        helper.make_node("QuantizeLinear", ["x", "one", "signed"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "one", "signed"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    ends = ("x", TensorProto.FLOAT, [4, 4]), ("y", TensorProto.FLOAT)
    one, zero = np.float32(1), np.uint8(0)
    signed = graph(computed, *ends, one=one, zero=zero, signed=np.int8(0))
    unsigned = graph(computed, *ends, one=one, zero=zero, signed=np.uint8(0))
    foreign = helper.make_node("QGemm", ["x"], ["y"], domain="com.microsoft")
    hidden = helper.make_model(helper.make_graph([foreign], "g", [], []))

    assert [layer.safe for layer in layers(signed)] == [False]
    assert layers(unsigned) == ()  # pairs of uint8 are added in int32
    assert [layer.safe for layer in layers(hidden)] == [False]


def test_float_layers_have_no_pairs(floats: onnx.ModelProto) -> None:
    assert layers(floats) == ()


@pytest.fixture(scope="module")
def calibrated(floats: onnx.ModelProto, train_rows: Table) -> onnx.ModelProto:
    images = calibration_rows(train_rows, 64)
    return static(floats, images, Calibration(rows=64, method="minmax"))


def test_static_and_dynamic_files_are_proven_whole(
    floats: onnx.ModelProto, calibrated: onnx.ModelProto
) -> None:
    still, moving = layers(calibrated), layers(dynamic(floats))

    assert [layer.op for layer in still] == ["Conv"] * 6 + ["Gemm"]
    assert sorted(layer.op for layer in moving) == ["ConvInteger"] * 6 + ["MatMulInteger"]
    assert [layer.channels for layer in still] == [4, 4, 4, 6, 6, 6, 3]
    assert all(layer.safe for layer in (*still, *moving))
    assert max(max(layer.levels) for layer in still) > 64


def test_scales_trained_too_fine_are_raised_to_the_bound(
    calibrated: onnx.ModelProto, floats: onnx.ModelProto, train_rows: Table
) -> None:
    net = QuantizationAware(calibrated, floats)
    with torch.no_grad():
        for scale in net.weight_scales:
            scale -= 1.0  # a third: without the bound pairs would saturate

    assert all(layer.safe for layer in layers(net.written()))
    net(torch.from_numpy(train_rows.images[:8])).square().sum().backward()
    assert all(scale.grad is not None and scale.grad.abs().max() > 0 for scale in net.weight_scales)


def test_a_scale_above_the_bound_stays_as_it_was_trained(
    calibrated: onnx.ModelProto, floats: onnx.ModelProto
) -> None:
    net = QuantizationAware(calibrated, floats)
    with torch.no_grad():
        net.weight_scales[0] += 0.5

    stored = {t.name: numpy_helper.to_array(t) for t in net.written().graph.initializer}

    expected = net.weight_scales[0].detach().exp().numpy()
    np.testing.assert_allclose(stored[net.layers[0].weight.scale], expected, rtol=1e-6)


def test_a_float_layer_that_onnx_runtime_makes_int8_is_not_called_safe() -> None:
    model = conv(np.ones((2, 3, 1, 1), np.int8))
    nodes = [node for node in model.graph.node if node.output[0] != "b"]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "b"))

    (layer,) = layers(model)

    assert not layer.safe
