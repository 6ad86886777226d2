"""float16 and bfloat16: every weight stored in 16 bits, restored to float32 by a Cast.

Arithmetic stays float32, so only the rounding of weights differs from the float student: 11 bits in
float16, 8 in bfloat16, which reaches as far as float32 does. Nothing is calibrated or trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from tasks.core.errors import DataError
from tasks.quantize.layers import Stored, layers, restoring, values

Half = Literal["float16", "bfloat16"]
HALVES: tuple[Half, ...] = ("float16", "bfloat16")
TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
BIAS = 24  # values from which a bias in 16 bits saves more than its Cast takes
INSTEAD = {
    "float16": "use bfloat16 in quantize.schemes instead",
    "bfloat16": "leave bfloat16 out of quantize.schemes",
}


def half(model: onnx.ModelProto, kind: Half) -> onnx.ModelProto:
    """`model` with its weights, and biases of some length, stored as `kind`.

    A finite value beyond the range of `kind` is a `DataError` that names its tensor.
    """
    dtype = helper.tensor_dtype_to_np_dtype(TYPES[kind])
    stored: dict[str, Stored] = {}
    for name in _names(model):
        whole = values(model, name)
        with np.errstate(over="ignore"):
            rounded = whole.astype(dtype)
        beyond = np.isfinite(whole) & ~np.isfinite(rounded.astype(np.float32))
        if beyond.any():
            raise DataError(
                f"weight '{name}' holds {float(whole[beyond][0]):g}, beyond the range of {kind}; "
                f"{INSTEAD[kind]}"
            )
        stored[name] = Stored(rounded)
    return restoring(model, stored)


def _names(model: onnx.ModelProto) -> Iterator[str]:
    """The tensors to store, each once."""
    found = layers(model)
    yield from (layer.name for layer in found)
    for name in dict.fromkeys(layer.bias for layer in found if layer.bias):
        if values(model, name).size >= BIAS:
            yield name
