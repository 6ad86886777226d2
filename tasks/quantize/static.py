"""Static int8 (QDQ): weights per channel, activation ranges fixed on training rows.

Types are those of the target. Each channel has the finest scale with which no pair of
products leaves int16, so that the file means the same on every CPU (see `saturation`), unless it
is made for VNNI alone. Logits stay float: on 256 levels classes would tie. `calibrate` says where
the ranges come from.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections import Counter
from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from tasks.quantize.calibrate import KINDS, Calibrated, Images, calibrate
from tasks.quantize.floating import kept_float
from tasks.quantize.params import Calibration
from tasks.quantize.prepare import QUANTIZABLE
from tasks.quantize.saturation import channel_axis, safe_scales
from tasks.quantize.targets import AVX2, Target


def static(
    model: onnx.ModelProto,
    images: NDArray[np.generic] | Images,
    calibration: Calibration,
    target: Target = AVX2,
) -> onnx.ModelProto:
    """`model` with QuantizeLinear/DequantizeLinear pairs, calibrated on raw `images`."""
    return quantized(calibrate(model, images, calibration, target))


def quantized(calibrated: Calibrated, floating: Collection[str] = frozenset()) -> onnx.ModelProto:
    """The static int8 graph; the layers `floating`, by their weights' names, stay float."""
    source, target = onnx.ModelProto(), calibrated.target
    source.CopyFrom(calibrated.model)
    with contextlib.redirect_stdout(io.StringIO()):
        quantizer = QDQQuantizer(
            source,
            per_channel=True,
            # [-64, 64], always safe, for weights without scales of ours.
            reduce_range=target.confined,
            weight_qType=QuantType.QInt8,
            activation_qType=target.activation,
            tensors_range=copy.deepcopy(calibrated.ranges),  # the quantizer writes into it
            nodes_to_quantize=[],
            nodes_to_exclude=_excluded(source.graph, floating),
            op_types_to_quantize=KINDS,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "ActivationSymmetric": target.symmetric,
                "TensorQuantOverrides": _scales(source.graph, floating) if target.confined else {},
            },
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


def _scales(
    graph: onnx.GraphProto, floating: Collection[str]
) -> dict[str, list[dict[str, object]]]:
    """Safe scales of each layer's weights, by name, as the quantizer takes them per channel.

    Weights that several layers share, or of another rank than a layer's, get none.
    """
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    used = Counter(name for node in graph.node for name in node.input)
    found = {}
    for node in graph.node:
        weight = stored.get(node.input[1]) if node.op_type in QUANTIZABLE else None
        if weight is None or weight.ndim < 2 or used[node.input[1]] > 1:
            continue
        if node.input[1] in floating or (node.op_type == "MatMul" and weight.ndim > 2):
            continue
        axis = channel_axis(node)
        found[node.input[1]] = [
            {"axis": axis, "scale": scale, "zero_point": np.int8(0)}
            for scale in safe_scales(weight, axis)
        ]
    return found
