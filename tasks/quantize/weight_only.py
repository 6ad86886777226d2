"""weights8 and weights4: weights stored as int8 or int4 per output channel, arithmetic in float32.

Weights are symmetric around zero, restored by Cast and Mul with the channel's scale. Activations
are not quantized, so nothing is calibrated and no kernel can saturate: int8 uses its whole range.
In 4 bits the largest weight of a channel would leave few levels to the others; so the scale is the
one of a small grid of clipping bounds whose squared error is least (clipping: Banner et al., 2019,
"Post training 4-bit quantization of convolutional networks for rapid-deployment"; the search over a
grid: Nagel et al., 2021, "A white paper on neural network quantization"). int4 takes opset 21.

MatMulNBits of ONNX Runtime is not used: it knows no convolution, pads a row of the last layer to
blocks of 16 or more, and lies outside the operators that the twin executes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tasks.quantize.layers import Stored, layers, restoring, values

Bits = Literal[4, 8]
TYPES = {8: TensorProto.INT8, 4: TensorProto.INT4}
LEVELS = {8: (-127, 127), 4: (-8, 7)}
CLIPPED = {8: np.ones(1), 4: np.linspace(0.4, 1.0, 61)}  # shares of a channel's largest weight
OPSET, IR = 21, 10  # of int4


def weight_only(model: onnx.ModelProto, bits: Mapping[str, Bits] | Bits) -> onnx.ModelProto:
    """`model` with the weights of each layer stored in as many `bits`, by layer or in all."""
    found = layers(model)
    chosen = bits if isinstance(bits, Mapping) else {layer.name: bits for layer in found}
    stored: dict[str, Stored] = {}
    for layer in found:
        if layer.name not in chosen:
            continue
        width = chosen[layer.name]
        integers, scale = rounded(values(model, layer.name), layer.axis, width)
        dtype = helper.tensor_dtype_to_np_dtype(TYPES[width])
        stored[layer.name] = Stored(integers.astype(dtype), scale)
    small = restoring(model, stored)
    if 4 in chosen.values():
        small.ir_version = max(small.ir_version, IR)
        for entry in small.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = max(entry.version, OPSET)
    return small


def rounded(
    weight: NDArray[np.float32], axis: int, bits: Bits
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers of the shape of `weight`, and the scale of each channel, shaped to multiply them."""
    low, high = LEVELS[bits]
    others = tuple(i for i in range(weight.ndim) if i != axis)
    wide = weight.astype(np.float64)
    largest = np.abs(wide).max(axis=others, keepdims=True)
    scale = best = np.where(largest > 0, largest / high, 1.0).astype(np.float32)
    least = np.full(best.shape, np.inf)
    for share in CLIPPED[bits]:
        tried = (scale * share).astype(np.float32)
        whole = np.clip(np.rint(wide / tried), low, high)
        error = ((whole * tried - wide) ** 2).sum(axis=others, keepdims=True)
        best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return np.clip(np.rint(wide / best), low, high).astype(np.int8), best
