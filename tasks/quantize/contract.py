"""The contract of a shipped file: calibrated logits, `valid`, classes and range in its metadata.

Students of softened targets are under-confident, so the logits are divided by a temperature that
was fitted on validation rows (Guo et al., 2017): no answer changes, and confidences mean what they
say. int8 turns NaN and infinities into finite logits without a word, and scores values of a wrong
scale as if they were right; so each row says whether its values are finite and in range.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks.core.session import VALID
from tasks.core.tables import Schema
from tasks.quantize.slim import slim


def shipped(model: onnx.ModelProto, data: Schema, temperature: float = 1.0) -> bytes:
    """The final file of a candidate: `model` with the contract, slimmed, serialised."""
    final = onnx.ModelProto()
    final.ParseFromString(slim(with_valid(tempered(model, temperature), data)))
    helper.set_model_props(
        final, {"classes": json.dumps(list(data.classes)), "range": json.dumps(list(data.range))}
    )
    onnx.checker.check_model(final)
    content: bytes = final.SerializeToString(deterministic=True)
    return content


def tempered(model: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """A copy of `model` whose logits are divided by `temperature`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    logits = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["untempered" if name == logits else name for name in node.output]
    graph.initializer.append(
        numpy_helper.from_array(np.array(1 / temperature, np.float32), "sharpness")
    )
    graph.node.append(helper.make_node("Mul", ["untempered", "sharpness"], [logits]))
    return copy


def with_valid(model: onnx.ModelProto, data: Schema) -> onnx.ModelProto:
    """A copy of `model` with the output `valid`, bool (batch): every value finite and in range.

    A comparison with NaN is false, so two comparisons say all of it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    source = graph.input[0].name
    low, high = (np.array(bound, np.float32) for bound in data.range)
    axes = np.arange(1, 1 + len(data.shape), dtype=np.int64)
    for name, value in (("valid_low", low), ("valid_high", high), ("valid_axes", axes)):
        graph.initializer.append(numpy_helper.from_array(value, name))
    graph.node.extend(
        [
            helper.make_node("GreaterOrEqual", [source, "valid_low"], ["valid_above"]),
            helper.make_node("LessOrEqual", [source, "valid_high"], ["valid_below"]),
            helper.make_node("And", ["valid_above", "valid_below"], ["valid_values"]),
            helper.make_node("ReduceMin", ["valid_values", "valid_axes"], [VALID], keepdims=0),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(VALID, TensorProto.BOOL, ["batch"]))
    return copy
