"""Static int8 (QDQ): weights per channel, activation ranges fixed on training rows.

Weights are int8 in [-64, 64] (`reduce_range`), activations uint8. On a CPU without VNNI the int8
kernels add two products in int16; 2 · 64 · 255 = 32,640 fits where 2 · 127 · 255 = 64,770 would
saturate, so the file means the same on every CPU. Logits stay float: on 256 levels classes would
tie. `calibrate` says where the ranges come from.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from tasks.quantize.calibrate import KINDS, Calibrated, Images, calibrate
from tasks.quantize.floating import kept_float
from tasks.quantize.params import Calibration
from tasks.quantize.prepare import QUANTIZABLE

LEVELS = (-64, 64)  # of a weight


def static(
    model: onnx.ModelProto, images: NDArray[np.generic] | Images, calibration: Calibration
) -> onnx.ModelProto:
    """`model` with QuantizeLinear/DequantizeLinear pairs, calibrated on raw `images`."""
    return quantized(calibrate(model, images, calibration))


def quantized(calibrated: Calibrated, floating: Collection[str] = frozenset()) -> onnx.ModelProto:
    """The static int8 graph; the layers `floating`, by their weights' names, stay float."""
    source = onnx.ModelProto()
    source.CopyFrom(calibrated.model)
    with contextlib.redirect_stdout(io.StringIO()):
        quantizer = QDQQuantizer(
            source,
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=copy.deepcopy(calibrated.ranges),  # the quantizer writes into it
            nodes_to_quantize=[],
            nodes_to_exclude=_excluded(source.graph, floating),
            op_types_to_quantize=KINDS,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    return kept_float(result, floating) if floating else result


def _excluded(graph: onnx.GraphProto, floating: Collection[str]) -> list[str]:
    """The nodes of the layers `floating`, and those that would round what such a layer says."""
    names: list[str] = []
    left: set[str] = set()
    for node in graph.node:
        layer = node.op_type in QUANTIZABLE
        if (layer and node.input[1] in floating) or (not layer and left.intersection(node.input)):
            names.append(node.name)
            left.update(node.output)
    return names
