"""Layers that stay float among int8 ones, whatever ONNX Runtime makes of the graph.

Where a float Conv or Gemm stands between DequantizeLinear and QuantizeLinear, ONNX Runtime (1.32,
`WeightBiasQuantization`) rounds its weights to int8 when it loads the file: one scale for all
channels, and the whole range, which saturates on a CPU without VNNI. So what enters such a layer is
dequantized by Cast, Sub and Mul instead: the same numbers, and no pattern to match.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks.quantize.prepare import QUANTIZABLE


def kept_float(model: onnx.ModelProto, floating: Collection[str]) -> onnx.ModelProto:
    """A copy of the int8 graph `model` in which the layers `floating`, by the names of their
    weights, read plain arithmetic and no DequantizeLinear."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    made = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    done: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        entering = made.get(node.input[0])
        if node.op_type in QUANTIZABLE and node.input[1] in floating and entering is not None:
            if entering.output[0] not in done:
                zero = stored[entering.input[2]].astype(np.float32)
                nodes += _plain(entering, float(zero))
                graph.initializer.append(
                    numpy_helper.from_array(zero, f"{entering.output[0]}:zero")
                )
                done.add(entering.output[0])
            node.input[0] = f"{entering.output[0]}:plain"
        nodes.append(node)
    used = {name for node in nodes for name in node.input} | {v.name for v in graph.output}
    kept = [node for node in nodes if used.intersection(node.output)]
    del graph.node[:]
    graph.node.extend(kept)
    return copy


def _plain(node: onnx.NodeProto, zero: float) -> Iterator[onnx.NodeProto]:
    """What `node` says, with its zero point `zero`, in plain arithmetic."""
    integers, scale = node.input[:2]
    result = node.output[0]
    last = f"{result}:cast"
    yield helper.make_node("Cast", [integers], [last], to=TensorProto.FLOAT)
    if zero:
        yield helper.make_node("Sub", [last, f"{result}:zero"], [f"{result}:centred"])
        last = f"{result}:centred"
    yield helper.make_node("Mul", [last, scale], [f"{result}:plain"])
