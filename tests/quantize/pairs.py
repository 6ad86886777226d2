"""Small int8 graphs, and what adding products in pairs in int16 makes of their sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tasks.quantize.saturation import LIMITS, safe_scales


def graph(
    nodes: Sequence[onnx.NodeProto],
    source: tuple[str, int, list[int | str]],
    target: tuple[str, int],
    **stored: NDArray[np.generic],
) -> onnx.ModelProto:
    """A model of `nodes` with the initializers `stored`."""
    name, kind, shape = source
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info(*target, [None] * len(source[2]))],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in stored.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def matmul(weights: NDArray[np.int8]) -> onnx.ModelProto:
    """uint8 (rows, K) times int8 (K, columns) in int32."""
    return graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        ("x", TensorProto.UINT8, ["rows", weights.shape[0]]),
        ("y", TensorProto.INT32),
        w=weights,
    )


def conv(weights: NDArray[np.int8], group: int = 1) -> onnx.ModelProto:
    """A QDQ convolution; scales of 1 but for the output's, which keeps the sums in 0 .. 255."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "ones", "zeros"], ["b"], axis=0),
        helper.make_node("Conv", ["a", "b"], ["c"], group=group),
        helper.make_node("QuantizeLinear", ["c", "many", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["d", "many", "zero"], ["y"]),
    ]
    channels = len(weights)
    return graph(
        nodes,
        ("x", TensorProto.FLOAT, ["rows", weights.shape[1] * group, 4, 4]),
        ("y", TensorProto.FLOAT),
        w=weights,
        one=np.float32(1),
        zero=np.uint8(0),
        ones=np.ones(channels, np.float32),
        zeros=np.zeros(channels, np.int8),
        many=np.float32(16384),
    )


def saturating(x: NDArray[np.uint8], rows: NDArray[np.int8]) -> NDArray[np.int64]:
    """vpmaddubsw and the sum in int32: (K,) times (channels, K)."""
    products = np.pad(x.astype(np.int64) * rows, ((0, 0), (0, rows.shape[1] % 2)))
    return np.clip(products.reshape(len(rows), -1, 2).sum(axis=2), *LIMITS).sum(axis=1)


def orders(weights: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    """K as (channel, height, width) and as (height, width, channel)."""
    return [
        weights.reshape(len(weights), -1),
        weights.transpose(0, 2, 3, 1).reshape(len(weights), -1),
    ]


def rounded(weights: NDArray[np.float32], axis: int = 0) -> NDArray[np.int8]:
    """As the quantizer rounds, with the safe scales."""
    shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
    steps = safe_scales(weights, axis).reshape(shape)
    return np.clip(np.round(weights / steps), -128, 127).astype(np.int8)
