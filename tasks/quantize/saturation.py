"""Whether an int8 file means the same on every x86 CPU, proven from its weights.

Without VNNI, ONNX Runtime's kernels (MLAS, U8S8) multiply uint8 activations by int8 weights, add
the products in pairs in int16 (vpmaddubsw), where they saturate, and only then in int32. A pair is
two neighbours along K from an even place on: (0, 1), (2, 3), ... In a convolution K runs over
(height, width, channel); (channel, height, width), as weights are stored, is proven as well, so
that the proof outlives another way to unroll an image. Activations may be anything in 0 .. 255:
zero points are subtracted afterwards. Sums in int32 are exact. Depthwise convolutions and
ConvInteger add no such pairs today and are held to the bound all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Number = TypeVar("Number", np.int64, np.float32, np.float64)
LEVELS = (-127, 127)  # of a weight; the bound on pairs decides how many a channel uses
ACTIVATION = 255
LIMITS = (-32768, 32767)  # of int16
WEIGHT = {"ConvInteger": 1, "MatMulInteger": 1, "QLinearConv": 3, "QLinearMatMul": 3}
UNKNOWN = np.kron([[127, -128], [-128, 127]], np.ones((2, 2))).astype(np.int8)  # the worst possible
BETWEEN = ("Conv", "Gemm", "MatMul")  # of DequantizeLinear: ONNX Runtime makes int8 kernels of them


@dataclass(frozen=True)
class Layer:
    """A layer with int8 weights; `name`: of the value that it computes. `levels`: the smallest and
    the largest weight; `lowest` and `highest`: what the sum of a pair of products can reach in any
    of its output `channels`, of which `unsafe` many leave int16."""

    name: str
    op: str
    channels: int
    levels: tuple[int, int]
    lowest: int
    highest: int
    unsafe: int

    @property
    def safe(self) -> bool:
        """No pair of products can saturate."""
        return self.unsafe == 0


def layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """Every layer of `model` that runs, or may run, on an int8 kernel, in the order of the graph.

    Where the weights cannot be read they are taken as the worst that int8 can hold. Weights of
    uint8 run on kernels that add pairs in int32, and float layers have no pairs: neither is listed.
    """
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    return tuple(
        _layer(node, weights)
        for node in model.graph.node
        if (weights := _weights(node, stored, made)) is not None and weights.dtype == np.int8
    )


def pair_sums(weights: NDArray[Number]) -> tuple[NDArray[Number], NDArray[Number]]:
    """Lowest and highest sum (channels,) that the weights of a pair give in either order, where an
    activation may silence either of the two; `weights`: (channels, K) or (channels, inputs, ...).

    >>> pair_sums(np.array([[100, 27, -3, 4]]))
    (array([-3]), array([127]))
    """
    highest = np.max([_heaviest(np.maximum(row, 0)) for row in _orders(weights)], axis=0)
    lowest = np.max([_heaviest(np.maximum(-row, 0)) for row in _orders(weights)], axis=0)
    return -lowest, highest


def safe_scales(weights: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The finest scale of each channel along `axis` with which no pair saturates, however rounded.

    Where the heaviest pair weighs 127 steps, rounding makes it 128 at most, and 128 · 255 = 32,640
    fits. No weight outweighs its pair, so none is clipped; a channel whose largest weight has light
    neighbours uses all 127 levels. A channel of zeros gets 1.

    >>> safe_scales(np.array([[127, 0], [127, 127]], np.float32), axis=0).tolist()
    [1.0, 2.0]
    """
    lowest, highest = pair_sums(np.moveaxis(weights, axis, 0))
    heaviest = np.maximum(-lowest, highest)
    return (np.where(heaviest > 0, heaviest, LEVELS[1]) / LEVELS[1]).astype(np.float32)


def channel_axis(node: onnx.NodeProto) -> int:
    """Along which axis of its weights a Conv, Gemm or MatMul (2-d) has its output channels."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if "Conv" in node.op_type or transposed else 1


def _orders(weights: NDArray[Number]) -> Iterator[NDArray[Number]]:
    """`weights` as (channels, K), channels of the input first and last."""
    yield weights.reshape(len(weights), -1)
    if weights.ndim > 2:
        yield np.moveaxis(weights, 1, -1).reshape(len(weights), -1)


def _heaviest(row: NDArray[Number]) -> NDArray[Number]:
    """The largest pair of each channel of `row` (channels, K), none below 0; of an odd K the last
    one is alone."""
    pairs = row[:, :-1:2] + row[:, 1::2]
    heaviest: NDArray[Number] = np.maximum(pairs.max(axis=1, initial=0), row[:, -1])
    return heaviest


def _layer(node: onnx.NodeProto, weights: NDArray[np.generic]) -> Layer:
    rows = _channels_first(node, weights.astype(np.int64))
    lows, highs = (ACTIVATION * sums for sums in pair_sums(rows))
    return Layer(
        name=node.output[0],
        op=node.op_type,
        channels=len(lows),
        levels=(int(weights.min()), int(weights.max())),
        lowest=int(lows.min()),
        highest=int(highs.max()),
        unsafe=int(((lows < LIMITS[0]) | (highs > LIMITS[1])).sum()),
    )


def _channels_first(node: onnx.NodeProto, weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of Conv as it is; of matrices, which may be a stack, one row for each column of each."""
    if "Conv" in node.op_type or weights.ndim < 2:
        return np.atleast_2d(weights)
    rows: NDArray[np.int64] = weights if channel_axis(node) == 0 else np.swapaxes(weights, -1, -2)
    return rows.reshape(-1, rows.shape[-1])


def _weights(
    node: onnx.NodeProto,
    stored: dict[str, NDArray[np.generic]],
    made: dict[str, onnx.NodeProto],
) -> NDArray[np.generic] | None:
    """The integers that `node` multiplies by activations, `UNKNOWN` if they are not in the file,
    None if it is no such layer."""
    if node.domain not in ("", "ai.onnx") or any(a.HasField("g") for a in node.attribute):
        return UNKNOWN  # it may compute anything
    if node.op_type in WEIGHT:
        return stored.get(node.input[WEIGHT[node.op_type]], UNKNOWN)
    if node.op_type not in BETWEEN:
        return None
    sources = [made.get(name) for name in node.input[:2]]
    entering, weight = (s if s and s.op_type == "DequantizeLinear" else None for s in sources)
    if entering is None:
        return None
    if weight is None:
        return UNKNOWN  # of a float layer there: ONNX Runtime makes int8 of it (see `floating`)
    if weight.input[0] in stored:
        return stored[weight.input[0]]
    zeros = [stored.get(source.input[2]) for source in (entering, weight) if len(source.input) > 2]
    unsigned = [zero is not None and zero.dtype == np.uint8 for zero in zeros]
    return None if unsigned == [True, True] else UNKNOWN
