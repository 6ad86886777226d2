"""The layers of a float graph by the name of their weights, and weights stored in fewer bits.

A stored weight is restored in the graph itself, by Cast and perhaps by Mul with a scale per
channel. ONNX Runtime folds both when it loads the file, so they cost bytes and no time; nothing of
ours may fold them before, since that would write float32 again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tasks.quantize.prepare import QUANTIZABLE


@dataclass(frozen=True)
class Layer:
    """A Conv, Gemm or MatMul with a stored weight, which names it. `axis`: of its output channels;
    `weights`: how many; `bias`: the name of a stored bias, if it has one."""

    name: str
    axis: int
    weights: int
    bias: str | None


@dataclass(frozen=True)
class Stored:
    """What is written instead of a float32 tensor: `values` of the type that is stored, which
    `scale`, float32 and broadcast, multiplies."""

    values: NDArray[Any]
    scale: NDArray[np.float32] | None = None


def layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """Every layer of a float graph, in its order; one for a weight that several nodes use."""
    stored = {t.name: t for t in model.graph.initializer}
    found: dict[str, Layer] = {}
    for node in model.graph.node:
        if node.op_type not in QUANTIZABLE or node.input[1] not in stored:
            continue
        weight = stored[node.input[1]]
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in stored else None
        layer = Layer(weight.name, _axis(node, len(weight.dims)), int(np.prod(weight.dims)), bias)
        found.setdefault(layer.name, layer)
    return tuple(found.values())


def values(model: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    """The stored tensor `name`."""
    found: NDArray[np.float32] = numpy_helper.to_array(
        next(t for t in model.graph.initializer if t.name == name)
    )
    return found


def restoring(model: onnx.ModelProto, stored: Mapping[str, Stored]) -> onnx.ModelProto:
    """A copy of `model` that holds `stored` instead of those tensors, and restores them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    kept = [t for t in graph.initializer if t.name not in stored]
    nodes: list[onnx.NodeProto] = []
    for name, tensor in stored.items():
        kept.append(numpy_helper.from_array(tensor.values, f"{name}:stored"))
        cast = name if tensor.scale is None else f"{name}:cast"
        nodes.append(helper.make_node("Cast", [f"{name}:stored"], [cast], to=TensorProto.FLOAT))
        if tensor.scale is not None:
            kept.append(numpy_helper.from_array(tensor.scale, f"{name}:scale"))
            nodes.append(helper.make_node("Mul", [cast, f"{name}:scale"], [name]))
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    return copy


def _axis(node: onnx.NodeProto, ndim: int) -> int:
    if node.op_type == "Conv":
        return 0
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if turned else ndim - 1
